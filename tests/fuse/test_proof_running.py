"""What ONNX Runtime refuses becomes a sentence of ours that quotes it."""

import numpy as np
import onnx_ir as ir
import pytest
from text_graphs import parse

from export.fuse.proof.running import said, session
from export.graph.values import Refusal


def test_a_model_that_does_not_load() -> None:
    proto = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    proto.graph.node(0).op_type = "NoSuchOperator"

    with pytest.raises(Refusal, match=r'^ONNX Runtime does not load the block.*; it says ".*[^.]"\.$') as found:
        session(ir.to_proto(proto))
    assert found.value.code == "V908"


def test_a_model_that_does_not_run() -> None:

    run = session(ir.to_proto(parse("g (float[A] x, float[C] z) => (float[D] y) { y = Add(x, z) }")))
    with pytest.raises(RuntimeError, match=r'^".*[^.]"$'):
        run({"x": np.ones(2, np.float32), "z": np.ones(3, np.float32)})


def test_only_the_first_line_is_quoted() -> None:
    assert said(ValueError("No.\nAnd more.")) == '"No"'
    assert said(ValueError()) == '"ValueError"'
