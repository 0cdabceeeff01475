"""Bisecting from the command line: a form of PyTorch against its own fused graph, and against a mutant of that."""

import json
from pathlib import Path

import mutants
import onnx
import onnx_ir as ir
import pytest
import small_models

from engines.gpus import gpus
from export import cli
from export.capture import capture, load_source
from export.fuse import Options, fuse

CASES = {
    "mha-rope": ("rope_missing_on_key", "rope-missing-on-key", "RotaryEmbedding"),
    "timm-mask": ("mask_of_first_row", "mask-of-first-row", "Attention"),
    "llama-gqa": ("gqa_order_wrong", "gqa-order", "Attention"),
}
"""Form: a mistake, the cause that is named, the operator of the node that is. Of the first, one
module rotates both Q and K."""


def fused(form: str) -> onnx.ModelProto:
    exported = capture(load_source(form), dtype="fp32", exporter="dynamo", opset=None).model
    return ir.to_proto(fuse(exported, Options(verify=False)).model)


@pytest.mark.parametrize("form", CASES)
def test_a_form_is_equal_to_its_fused_graph_and_a_mutants_mistake_is_named(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mutant, cause, op = CASES[form]
    right = fused(form)
    onnx.save(right, tmp_path / "right.onnx")
    onnx.save(mutants.MUTANTS[mutant](right), tmp_path / "wrong.onnx")
    assert cli.main(["bisect", form, str(tmp_path / "right.onnx")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "EQUAL"
    assert cli.main(["bisect", form, str(tmp_path / "wrong.onnx"), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    nodes = [node.name for node in right.graph.node if node.op_type == op]
    assert told["cause"]["code"] == cause and told["cause"]["ratio"] <= 1.0 < told["tensor"]["ratio"]
    assert told["node"]["op"] == op and told["node"]["name"] == nodes[-1]
    assert ".py:" in told["node"]["source"], "the line of PyTorch it comes from"


@pytest.mark.skipif(bool(gpus().found), reason="says what happens without a GPU, and this machine has one")
def test_an_engine_is_not_run_without_its_gpu_and_the_reason_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_models.save(small_models.attention("float16"), tmp_path / "a.onnx")
    words = [str(tmp_path / "a.onnx"), "--target", "tensorrt-rtx", "--sm", "89", "--no-verify"]
    assert cli.main(["build", *words, "-q", "-o", str(tmp_path / "out"), "--shapes", "batch=1:2:2,length=1:5:8"]) == 0
    capsys.readouterr()
    assert cli.main(["bisect", str(tmp_path / "a.onnx"), str(tmp_path / "out" / "model.89.engine")]) == 3
    out, err = capsys.readouterr()
    assert not out, "nothing is called equal"
    assert "NOT RUN" in err and "driver" in err and "SM 89" in err
