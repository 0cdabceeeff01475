"""A vendor's words as sentences; the texts are those of tensorrt_rtx 1.7.1.116."""

import pytest

from engines import failure
from engines.graph import AttentionNode, Graph

EMPTY = Graph((), (), frozenset(), (), ())


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (
            "Invalid Node - add0\nITensor::getDimensions: Error Code 4: Shape Error (broadcast dimensions must be "
            "conformable In op at /_src/optimizer/common/shape/shapeContext.cpp:2699)\n[checkMacros.cpp::catchCudaError"
            "::250] Error Code 1: Cuda Runtime (In catchCudaError at /_src/common/dispatch/checkMacros.cpp:250 "
            "(cudaError 35: CUDA driver version is insufficient for CUDA runtime version))",
            "broadcast dimensions must be conformable.",
        ),
        ('softcap == 0.0 && "Setting softcap is not supported."', "Setting softcap is not supported."),
        (
            "Myelin ([shape.cpp:175: x] \nError during shape inference of\nadd(a, b)\nError is:\nInput 0's type (half) "
            "differs from input 1's type (float).; [myelin_graph.h:1295: y] CHECK failed",
            "Input 0's type (half) differs from input 1's type (float).",
        ),
        ("plain words", "plain words."),
        ("Invalid Node - x", "Invalid Node - x."),
    ],
)
def test_sentences(text: str, clean: str) -> None:
    assert failure.sentence(text) == clean


def test_a_parser_that_gives_no_error_is_quoted_from_its_log() -> None:
    log = [("ERROR", "something broke"), ("ERROR", "[x::catchCudaError::250] no driver"), ("INFO", "later")]
    assert failure.parse_failure("T 1", [], log).startswith("T 1 refuses the model: something broke. Export those")
    assert "it gave no reason." in failure.parse_failure("T 1", [], [])


def test_an_error_inside_a_function_names_its_caller() -> None:
    error = {"name": "inner", "op": "Det", "text": "false", "check": "checkDet", "functions": ["call (Block)"]}
    said = failure.parse_failure("T 1", [error], [])
    assert "node 'inner' (Det), called by call (Block): it does not support Det." in said


def test_an_unknown_build_failure_quotes_the_last_error() -> None:
    said = failure.build_failure("T 1", 89, EMPTY, [("ERROR", "first"), ("INTERNAL_ERROR", "last"), ("WARNING", "w")])
    assert said == "T 1 could not build the model for SM 89: last. Run again with -v for the builder's whole log."


@pytest.mark.parametrize(
    ("a", "b", "known"),
    [
        (AttentionNode("a", "Attention", (), "q", "k"), AttentionNode("b", "Attention", (), "p", "k"), True),
        (AttentionNode("a", "Attention", (), "q", "k"), AttentionNode("b", "Attention", (), "k", "l"), True),
        (AttentionNode("a", "Attention", (), "q", "k"), AttentionNode("b", "Attention", (), "p", "l"), False),
        (
            AttentionNode("a", "Attention", (), "q", "k"),
            AttentionNode("b", "Attention", (), "p", "k", scale=0.5),
            False,
        ),
        (
            AttentionNode("a", "Attention", (), "q", "k", scale=1.0),
            AttentionNode("b", "Attention", (), "p", "k", scale=1.0),
            False,
        ),
        (AttentionNode("a", "Softmax", ()), AttentionNode("b", "Softmax", ()), False),
    ],
)
def test_the_known_crash_is_blamed_only_where_it_can_be(a: AttentionNode, b: AttentionNode, known: bool) -> None:
    said = failure.crash("T 1", -11, Graph((), (), frozenset(), (), (a, b)), [("INFO", "at work")], "")
    assert "T 1 crashed (SIGSEGV)" in said
    assert ("with one scale" in said) is known
    assert ("Its last message: at work." in said) is not known
