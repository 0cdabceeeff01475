"""What is measured for pictures: the weights of a graph in float64 and of its fused twin, and what `view` draws."""

import base64
import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx_ir as ir
import pytest
import small_models

from export import cli
from export.fuse import fuse
from export.pictures import heat
from export.pictures.attention_map import attention_maps
from export.pictures.measured import pictures
from export.report.schemas import schema


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def expected(x: np.ndarray, model: ir.Model) -> np.ndarray:
    """softmax(QK^T) of small_models.attention, [batch, heads, queries, keys]."""
    held = {name: value.const_value.numpy().astype(np.float64) for name, value in model.graph.initializers.items()}
    q, k = ((x.astype(np.float64) @ held[w]).reshape(*x.shape[:2], small_models.HEADS, -1) for w in ("wq", "wk"))
    return softmax(np.einsum("bshd,bthd->bhst", q, k) * held["scale"])


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    return ir.from_proto(small_models.attention("float32", kept=True))


FEEDS = {"x": np.random.default_rng(3).standard_normal((2, 6, small_models.WIDTH)).astype(np.float32)}


def test_pictures_hold_the_weights_of_both_graphs(graph: ir.Model) -> None:
    fused = fuse(graph)
    content = pictures(graph, fused.model, fused.attentions, FEEDS, {"batch": 2, "length": 6}, "fp32")
    jsonschema.validate(json.loads(json.dumps(content)), schema("pictures"))
    one, other = (content["blocks"][row.name] for row in fused.attentions)
    weights = expected(FEEDS["x"], graph)[one["weights"]["element"]]
    for kind in ("reference", "fused"):
        packed = one["weights"][kind]
        cells = np.frombuffer(base64.b64decode(packed["cells"]), np.uint8).reshape(weights.shape)
        np.testing.assert_allclose(cells / 254 * packed["peak"], weights, atol=packed["peak"] / 254)
    assert one["weights"]["difference"]["peak"] < 1e-6
    assert one["error"]["max"] < 1e-5
    assert other["weights"]["heads"] == small_models.HEADS, "the one that stayed has weights too"
    kinds = {node["kind"] for node in one["before"]["nodes"]}
    assert {"scores", "scale", "softmax", "values"} <= kinds
    assert [node["op"] for node in one["after"]["nodes"]].count("Attention") == 1


def test_a_graph_that_does_not_run_has_drawings_and_a_reason(graph: ir.Model) -> None:
    fused = fuse(graph)
    content = pictures(graph, fused.model, fused.attentions, {}, {}, "fp32")
    for block in content["blocks"].values():
        assert "weights" not in block
        assert "did not run" in block["not_run"]
        assert block["before"]["nodes"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, graph: ir.Model) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("view")
    ir.save(fuse(graph).model, folder / "fused.onnx")
    np.savez(folder / "x.npz", **FEEDS)
    return folder / "fused.onnx", folder / "x.npz"


def test_the_maps_of_a_fused_model(files: tuple[Path, Path], graph: ir.Model) -> None:
    (found,) = attention_maps(files[0], FEEDS)
    np.testing.assert_allclose(found.weights, expected(FEEDS["x"], graph), atol=1e-6)


@pytest.mark.parametrize("ending", ["html", "png"])
def test_view_writes_a_page_or_a_picture(files: tuple[Path, Path], ending: str, tmp_path: Path, capsys) -> None:
    if ending == "png":
        pytest.importorskip("matplotlib")
    out = tmp_path / f"heat.{ending}"
    words = ["view", str(files[0]), "--inputs", str(files[1]), "-o", str(out)]
    assert cli.main([*words, "--labels", "<b>,$a,c,d,e,f", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["attentions"]
    assert (row["heads"], row["queries"], row["keys"]) == (small_models.HEADS, 6, 6)
    content = out.read_bytes()
    if ending == "png":
        assert content.startswith(b"\x89PNG") and len(content) > 5000
    else:
        assert b"6 queries x 6 keys" in content
        assert b"<b>" not in content and b"\\u003cb\\u003e" in content


def test_view_says_what_it_cannot_draw(files: tuple[Path, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    words = ["view", str(files[0]), "--inputs", str(files[1])]
    assert cli.main([*words, "-o", str(tmp_path / "heat.gif")]) == 2
    assert cli.main([*words, "-o", str(tmp_path / "heat.html"), "--attention", "nothing"]) == 2
    assert "no attention to show of that name" in capsys.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main([*words, "-o", str(tmp_path / "heat.png")]) == 3
    assert "pip install 'attnproof[report]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_maps_too_large_are_pooled_to_their_room() -> None:
    assert heat.cells_for(2, 600_000) == 64
    assert heat.cells_for(1024, 600_000) == 13
