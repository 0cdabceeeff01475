"""`rule`: the page of a code, the list of all, and what a wrong code is told; and what `inspect` says and costs."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import small_models

from export import cli, rules


def test_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rule", "k203"]) == 0
    assert capsys.readouterr().out == rules.rule("K203").page
    assert "# K203: " in rules.rule("K203").page


def test_lists_every_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rule"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines[2:]) == rules.codes()


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rule", "F001", "--json"]) == 0
    page = json.loads(capsys.readouterr().out)
    assert set(page) == {"schema", "code", "title", "meaning", "change", "page"}
    assert cli.main(["rule", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["rules"]
    assert [entry["code"] for entry in listed] == list(rules.codes())


def test_a_wrong_code_is_told_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rule", "K20"]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert "There is no rule 'K20'; near it are K20" in written.err
    assert cli.main(["rule", "wrong"]) == 2
    assert "lists all" in capsys.readouterr().err


def test_the_codes_need_no_heavy_import() -> None:
    code = (
        "import sys; from export import cli; cli.main(['rule', 'K203']);"
        "print([m for m in ('onnx', 'torch', 'numpy', 'onnx_ir', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_inspect_says_what_to_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_models.save(small_models.attention(kept=True), tmp_path / "in.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "Softmax":
            node.doc_string = "/venv/torch/nn/modules/module.py(9): _call\n/home/me/net.py(12): forward\n"
    onnx.save(model, path)
    assert cli.main(["inspect", str(path), "--json"]) == 0
    (kept,) = [row for row in json.loads(capsys.readouterr().out)["attentions"] if row["status"] == "kept"]
    assert kept["source"] == "/home/me/net.py:12 in forward"
    assert kept["change"] == rules.rule(kept["code"]).change
    assert cli.main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert f"kept {kept['name']}: {kept['code']}: {kept['reason']} [/home/me/net.py:12 in forward]\n" in text
    assert f"  to change: {kept['change']}\n" in text
    assert "python -m export rule CODE" in text


CLOCK = """
import sys, time
import onnx, onnx_ir, onnxruntime, sympy, numpy, onnx_shape_inference, onnx.reference
from export import cli
from export.fuse.proof import verify
start = time.process_time()
code = cli.main(["inspect", sys.argv[1]])
print(time.process_time() - start, code, "torch" in sys.modules)
"""


def test_inspect_of_a_thousand_nodes_takes_less_than_a_second_and_no_torch(tmp_path: Path) -> None:
    """Processor time of its own, on one thread: what it imports is other people's and a cost of the first call."""
    layer = """
      a{n} = MatMul(x{n}, w) b{n} = Reshape(a{n}, split) q{n} = Transpose<perm = [0, 2, 1, 3]>(b{n})
      c{n} = MatMul(x{n}, w) d{n} = Reshape(c{n}, split) k{n} = Transpose<perm = [0, 2, 3, 1]>(d{n})
      e{n} = MatMul(x{n}, w) f{n} = Reshape(e{n}, split) v{n} = Transpose<perm = [0, 2, 1, 3]>(f{n})
      s{n} = MatMul(q{n}, k{n}) t{n} = Div(s{n}, root) u{n} = Add(t{n}, mask) p{n} = Softmax<axis = -1>(u{n})
      o{n} = MatMul(p{n}, v{n}) r{n} = Transpose<perm = [0, 2, 1, 3]>(o{n}) j{n} = Reshape(r{n}, join)
      h{n} = MatMul(j{n}, w) g{n} = Relu(h{n}) x{m} = Add(x{n}, g{n})
    """
    body = "".join(layer.format(n=f"_{n}", m=f"_{n + 1}") for n in range(53))
    graph = f"""<ir_version: 8, opset_import: ["": 17]>
    g (float[B,L,4] x_0, float[B,1,1,L] mask) => (float[B,L,4] y)
    <float[4,4] w = {{1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7}}, float root = {{2.0}},
     int64[4] split = {{0, 0, 2, 2}}, int64[3] join = {{0, 0, 4}}> {{ {body} y = Identity(x_53) }}"""
    model = onnx.parser.parse_model(graph)
    assert len(model.graph.node) > 1000
    onnx.save(model, tmp_path / "deep.onnx")
    command = [sys.executable, "-c", CLOCK, str(tmp_path / "deep.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "53 found: 53 fused" in done.stdout
    seconds, code, torch = done.stdout.splitlines()[-1].split()
    assert (code, torch) == ("0", "False")
    assert float(seconds) < 1.0, seconds
