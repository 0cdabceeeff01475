"""Bisecting names the right node and the right cause of every mutant, and nothing where there is none."""

import json
from pathlib import Path
from types import SimpleNamespace

import mutants
import numpy as np
import onnx
import onnx_ir as ir
import parity_blocks as blocks
import pytest
import small_models
from onnx import TensorProto, helper, numpy_helper

from engines.ort_runner import OrtRunner
from export import cli
from export.bisect.feeds import Feeds
from export.bisect.pairs import by_name, exits
from export.bisect.result import Bisection
from export.bisect.search import search
from export.bisect.side import Side
from export.bisect.tensors import Tensors
from export.parity import arrays

ATTENTION, QUERY, KEY = ("Attention", "attention"), "q.heads.turned", "k.heads.turned"

EXPECTED = {
    "scale_dropped": ("plain", "scale-dropped", ATTENTION),
    "scale_twice": ("plain", "scale-twice", ATTENTION),
    "softcap_dropped": ("softcap", "softcap-dropped", ATTENTION),
    "causal_dropped": ("causal", "causal-dropped", ATTENTION),
    "causal_off_by_one": ("causal", "causal-one-more", ATTENTION),
    "mask_inverted": ("bool-mask", "mask-inverted", ATTENTION),
    "mask_dropped": ("bool-mask", "mask-dropped", ATTENTION),
    "mask_off_by_one": ("float-mask", "mask-one-key-late", ATTENTION),
    "mask_on_wrong_axis": ("float-mask", "mask-transposed", ATTENTION),
    "mask_of_first_row": ("bool-mask", "mask-of-first-row", ATTENTION),
    "key_and_value_swapped": ("cross", "key-value-swapped", ATTENTION),
    "kv_heads_swapped": ("plain", "kv-heads-reversed", ATTENTION),
    "value_heads_swapped": ("gqa", "value-heads-reversed", ATTENTION),
    "gqa_order_wrong": ("gqa", "gqa-order", ATTENTION),
    "rope_pairing_changed": ("rope-half", "rope-pairing", ("RotaryEmbedding", QUERY)),
    "cos_and_sin_swapped": ("rope-interleaved", "rope-cos-sin-swapped", ("RotaryEmbedding", QUERY)),
    "rope_missing_on_key": ("rope-interleaved", "rope-missing-on-key", ("RotaryEmbedding", KEY)),
    "rope_missing_on_query": ("rope-half", "rope-missing-on-query", ("RotaryEmbedding", QUERY)),
}
"""What is said of each mutant of a block: its cause and its node."""


def graph(name: str, dtype: str = "fp32") -> onnx.ModelProto:
    return blocks.graph(blocks.block(blocks.BY_NAME[name]), dtype)


def cases(name: str) -> list[Feeds]:
    found = {case.name: Feeds(case.name, arrays.feeds(case.inputs)) for case in blocks.cases(blocks.BY_NAME[name])}
    return [found[case] for case in ("typical", "right-padding") if case in found]


def bisected(a: onnx.ModelProto, b: onnx.ModelProto, given: list[Feeds], **options) -> Bisection:
    return search(Side("a", ir.from_proto(a)), Side("b", ir.from_proto(b)), given, **options)


def test_every_mutant_is_expected() -> None:
    assert set(EXPECTED) == set(mutants.MUTANTS)


@pytest.mark.parametrize("mutant", EXPECTED)
def test_a_mutant_is_named_with_its_node_and_its_cause(mutant: str) -> None:
    spec, cause, node = EXPECTED[mutant]
    right = graph(spec)
    found = bisected(right, mutants.MUTANTS[mutant](right), cases(spec))
    assert found.cause is not None and found.cause.code == cause, (found.cause, found.also)
    assert found.node is not None and (found.node.op, found.node.name) == node
    assert found.cause.ratio <= 1.0 < found.block.ratio
    assert found.block.name == "attention"


@pytest.mark.parametrize("spec", ["finite-fill", "rope-half"])
def test_a_graph_is_equal_to_itself_and_to_its_other_spelling(spec: str) -> None:
    three = blocks.graph(blocks.block(blocks.BY_NAME[spec]), "fp32", three_d=True)
    found = bisected(graph(spec), three, cases(spec))
    assert found.equal and found.cases == 2 and found.compared >= 2


def changed(op: str, edit) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """Two attentions written out, one after another; the second model's last node of an operator is edited."""
    right = small_models.attention(extra="  z = Identity(y)\n")
    del right.graph.output[:]
    right.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", "length", 16]))
    wrong = onnx.ModelProto()
    wrong.CopyFrom(right)
    edit(next(node for node in reversed(wrong.graph.node) if node.op_type == op), wrong.graph)
    return right, wrong


def constant(node: onnx.NodeProto, owner: onnx.GraphProto, at: int, value: np.ndarray) -> None:
    owner.initializer.append(numpy_helper.from_array(value, "changed"))
    node.input[at] = "changed"


VERSIONS = {"ir_version": 10, "opset_imports": [helper.make_opsetid("", 18)]}
X = [Feeds("given", {"x": np.random.default_rng(1).standard_normal((2, 5, 16)).astype(np.float32)})]


@pytest.mark.parametrize(
    ("op", "edit", "cause", "tensor"),
    [
        ("Mul", lambda n, g: constant(n, g, 1, np.float32(1.0)), "scale-dropped", "s"),
        ("Mul", lambda n, g: constant(n, g, 1, np.float32(1 / 8)), "scale-twice", "s"),
        ("Softmax", lambda n, g: n.attribute.__getitem__(0).__setattr__("i", 2), "attribute", "p"),
        ("MatMul", lambda n, g: n.input.__setitem__(1, "q"), "input", "o0"),
    ],
    ids=["scale", "scale-twice", "axis", "operand"],
)
def test_an_attention_that_is_written_out_is_read_first(op, edit, cause: str, tensor: str) -> None:
    right, wrong = changed(op, edit)
    found = bisected(right, wrong, X)
    assert found.tensor.name == tensor == found.node.name.removeprefix(f"{op}_")
    assert cause in {c.code for c in (found.cause, *found.also)}


def test_a_weight_before_the_attention_is_the_weight_and_no_mistake_of_the_attention() -> None:
    right = graph("plain")
    wrong = onnx.ModelProto()
    wrong.CopyFrom(right)
    weight = next(w for w in wrong.graph.initializer if w.name == "k.w")
    array = numpy_helper.to_array(weight).copy()
    array[3, 4] += 0.5
    weight.CopyFrom(numpy_helper.from_array(array, "k.w"))
    found = bisected(right, wrong, cases("plain"))
    assert (found.cause.code, found.node.name, found.tensor.name) == ("weight", "k.mm", "k.mm")
    assert "[3, 4]" in found.cause.sentence


@pytest.mark.parametrize(("loud", "code"), [(150.0, "overflow"), (1.0, None)])
def test_an_engine_that_parts_from_its_own_graph_is_told_and_its_overflow_with_its_value(loud: float, code) -> None:
    """The engine is stood in for by what one gives whose Q K^T left float16; what ONNX Runtime keeps wider did not."""
    model = ir.from_proto(small_models.attention("float16"))
    x = (loud * np.random.default_rng(1).standard_normal((2, 5, 16))).astype(np.float16)
    engine = SimpleNamespace(run=lambda feeds: {"y": np.full((2, 5, 16), np.nan, np.float16)})
    found = search(Side("a", model), Side("b", model, runner=engine), [Feeds("given", {"x": x})])
    assert found.tensor.name == "y" and "not a node of it" in found.notes[0]
    if code is None:
        assert found.cause is None
        return
    assert found.cause.code == code
    value = float(found.cause.sentence.split(" reaches ")[1].split()[0])
    assert value > 65504 and "ends at 65504" in found.cause.sentence


def test_a_name_that_meets_by_chance_is_passed_over() -> None:
    right = small_models.attention()
    other = onnx.ModelProto()
    other.CopyFrom(right)
    for node in other.graph.node:  # q0 and v0 exchange their names: they differ, and all that follows agrees
        swap = {"q0": "v0", "v0": "q0"}
        node.input[:] = [swap.get(name, name) for name in node.input]
        node.output[:] = [swap.get(name, name) for name in node.output]
    assert bisected(right, other, X).equal
    scale = next(node for node in other.graph.node if node.op_type == "Mul")
    other.graph.initializer.append(numpy_helper.from_array(np.float32(1.0), "changed"))
    scale.input[1] = "changed"
    assert bisected(right, other, X).tensor.name == "s"


def test_a_batch_of_tensors_fits_the_limit(monkeypatch) -> None:
    """All tensors at once would take more than the limit: the same search with room for them does."""
    names = [f"t{at}" for at in range(24)]
    nodes = [helper.make_node("Add", [a, "x"], [b]) for a, b in zip(["x", *names], names, strict=False)]
    shape = ["n", 1024]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", names[-1])]
    model = helper.make_model(helper.make_graph(nodes, "chain", ends[:1], ends[1:]), **VERSIONS)
    model = onnx.shape_inference.infer_shapes(model)
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    wrong.graph.node[20].op_type = "Sub"
    feeds = [Feeds("given", {"x": np.random.default_rng(0).standard_normal((32, 1024)).astype(np.float32)})]
    held: list[list[int]] = []
    run = OrtRunner.run

    def counted(self, given):
        outputs = run(self, given)
        held[-1].append(sum(array.nbytes for array in outputs.values()))
        return outputs

    monkeypatch.setattr(OrtRunner, "run", counted)
    limit = 16 << 20  # two tensors of 32 x 1024 at 184 bytes an element
    for room in (limit, limit * 100):
        held.append([])
        found = bisected(model, wrong, feeds, limit=room)
        assert (found.tensor.name, found.cause.code) == ("t20", "operator")
    tensors = Tensors(ir.from_proto(model))
    assert max(map(len, tensors.batches(names, feeds[0].arrays, limit))) == 2
    size = 32 * 1024 * 8  # one tensor in float64, the largest of the runs
    assert max(held[0]) == 2 * size
    assert max(held[1]) >= 19 * size


FACTORY = (
    small_models.FACTORY.replace("class Block", "class Inner")
    .replace(
        "def make",
        """class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = Inner(), Inner()

    def forward(self, x):
        return self.second(self.first(x))


def make""",
    )
    .replace("return Block()", "return Net()")
)


def test_a_module_is_followed_by_its_own_modules(tmp_path: Path, capsys) -> None:
    from export.capture import capture, load_source

    (tmp_path / "net.py").write_text(FACTORY)
    factory = f"{tmp_path / 'net.py'}:make"
    export = capture(load_source(factory), dtype="fp32", exporter="dynamo", opset=None).model
    paths = exits(export.graph)
    assert {"first", "second", "first.qkv", "second.out"} <= set(paths)
    proto = ir.to_proto(export)
    onnx.save(proto, tmp_path / "right.onnx")
    inner = Tensors(export)
    node = inner.values[paths["second.out"]].producer()
    weight = next(v for v in node.inputs if v.const_value is not None)
    held = next(w for w in proto.graph.initializer if w.name == weight.name)
    held.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(held), held.name))
    onnx.save(proto, tmp_path / "wrong.onnx")
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((2, 6, 16)).astype(np.float32))
    given = ["--inputs", str(tmp_path / "x.npz")]
    assert cli.main(["bisect", factory, str(tmp_path / "right.onnx"), *given]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "EQUAL"
    assert cli.main(["bisect", factory, str(tmp_path / "wrong.onnx"), *given, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["block"]["key"] == "second.out"
    assert told["node"]["module"] == "second.out"
    assert told["cause"]["code"] == "weight"


def test_pairs_follow_names_and_not_places() -> None:
    one, two = (Tensors(ir.from_proto(graph("plain"))) for _ in range(2))
    assert [pair.name for pair in by_name(one, two)] == list(two.values)


@pytest.mark.parametrize(
    ("words", "text", "code"),
    [
        (["a.onnx", "missing.onnx"], "does not exist", 2),
        (["a.onnx", "half.onnx"], "computes in fp32 and", 2),
        (["a.onnx", "a.onnx", "--memory", "0"], "holds no tensor", 2),
        (["a.onnx", "a.onnx", "--dtype", "fp16"], "keep the precision", 2),
        (["a.onnx", "two.onnx"], "No output of B is one of A", 2),
        (["a.onnx", "a.onnx", "--inputs", "none.npz"], "no file", 2),
        (["a.onnx", "."], "no artifact folder", 2),
        (["a.onnx", "missing.engine"], "There is no", 2),
    ],
)
def test_wrong_use_is_a_sentence(tmp_path, monkeypatch, capsys, words: list[str], text: str, code: int) -> None:
    monkeypatch.chdir(tmp_path)
    small_models.save(small_models.attention(), tmp_path / "a.onnx")
    small_models.save(small_models.attention("float16"), tmp_path / "half.onnx")
    two = small_models.attention(extra="  n0 = Identity(y)\n  n1 = Identity(y)\n")
    del two.graph.output[:]
    two.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("n0", "n1"))
    small_models.save(two, tmp_path / "two.onnx")
    assert cli.main(["bisect", *words]) == code
    assert text in capsys.readouterr().err
