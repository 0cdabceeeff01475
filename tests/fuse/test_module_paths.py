"""The path of the module around a node, as either exporter records it."""

import onnx_ir as ir
import pytest

from export.graph.source_lines import module_path

SCOPES = "pkg.torch.onnx.name_scopes"


@pytest.mark.parametrize(
    ("scopes", "path"),
    [
        ("['', 'layers.3', 'layers.3.attention', 'softmax_3']", "layers.3.attention"),
        ("['', 'softmax']", None),
        ("['softmax']", None),
        ("[]", None),
        ("not a list", None),
    ],
)
def test_of_the_dynamo_exporter(scopes: str, path: str | None) -> None:
    node = ir.node("Softmax", [], name="/a/b/Softmax", metadata_props={SCOPES: scopes})
    assert module_path(node) == path


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/layers.3/attention/Softmax_1", "layers.3.attention"),
        ("/layers.3/attention/Softmax/Attention", "layers.3.attention"),
        ("/Softmax", None),
        ("Softmax_17", None),
        ("attn/self/Softmax", None),
        (None, None),
    ],
)
def test_of_the_torchscript_exporter(name: str | None, path: str | None) -> None:
    assert module_path(ir.node("Softmax", [], name=name)) == path
