"""A failed export names the user's line and the rewrite."""

import sys

import pytest
import torch
from foreign_modules import Bessel, Branching, Measured, Repeating, WhereBool, rand
from torch import nn
from torch.nn import functional as F

from export.capture import capture, of_module
from export.capture.failures import explained
from export.capture.frames import current_line, is_users, quoted_line
from export.capture.remedies import remedy
from export.errors import CaptureError

MASK = torch.ones(2, 7, dtype=torch.bool)


def failed(module: nn.Module, inputs: tuple, exporter: str, **options) -> str:
    with pytest.raises(CaptureError) as caught:
        capture(of_module("failing", module, inputs), exporter=exporter, **options)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_a_branch_on_values(exporter: str, capfd: pytest.CaptureFixture[str]) -> None:
    message = failed(Branching(), (rand(2, 7, 4), MASK), exporter)
    assert "the code branches on a tensor's values" in message
    assert "foreign_modules.py" in message and "(`if not mask.all():`)" in message
    assert "torch.where(condition, a, b)" in message
    assert capfd.readouterr() == ("", "")


def test_a_size_read_from_values_is_frozen_by_a_trace() -> None:
    message = failed(Measured(), (rand(2, 7, 4), torch.tensor([3, 6])), "torchscript")
    assert "would freeze a value of the example inputs" in message and "int(lengths.max())" in message
    assert "torch.arange(x.shape[1]) < lengths[:, None]" in message


def test_a_tensor_unpacked_into_a_fixed_number_of_parts_is_no_branch() -> None:
    class Packed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = x.unflatten(-1, (3, 4)).permute(2, 0, 1, 3)
            return F.softmax(q @ k.transpose(-2, -1), dim=-1) @ v

    assert capture(of_module("packed", Packed(), (rand(2, 7, 12),)), exporter="torchscript").outputs


def test_an_error_without_a_line_sends_nobody_to_one() -> None:
    error = ValueError("2 not in range [4, 8]\n\nThe error above occurred when calling torch.export.export. Try more.")
    assert str(explained(error, "dynamo", "Net")) == (
        "The dynamo exporter could not export Net: ValueError: 2 not in range [4, 8]. Try --exporter torchscript."
    )


def test_repeat_interleave_with_a_symbolic_count() -> None:
    message = failed(Repeating(), (rand(2, 7, 4),), "dynamo")
    assert "repeat_interleave has a count that is no constant" in message and "foreign_modules.py" in message
    assert ".expand(" in message


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_where_on_bools(exporter: str) -> None:
    message = failed(WhereBool(), (rand(2, 7, 4), MASK), exporter)
    assert "foreign_modules.py" in message and "(c & a) | (~c & b)" in message


@pytest.mark.parametrize(
    ("exporter", "operator"), [("dynamo", "bessel_j0"), ("torchscript", "aten::special_bessel_j0")]
)
def test_an_operator_without_onnx_form(exporter: str, operator: str, capfd: pytest.CaptureFixture[str]) -> None:
    message = failed(Bessel(), (rand(2, 7, 4),), exporter)
    assert f"{operator} has no ONNX form" in message and "return torch.special.bessel_j0(x)" in message
    assert capfd.readouterr().out == ""  # PyTorch dumps its graph there


def test_dims_the_user_wants_and_the_code_pins() -> None:
    class Pinned(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(2, 7, 4).softmax(-1)

    source = of_module("pinned", Pinned(), (rand(2, 7, 4),), {"x": {1: torch.export.Dim("length")}})
    with pytest.raises(
        CaptureError, match=r"axis 1 of `x` is to vary, but the code fixes it to 7, at .*x\.view\(2, 7, 4\)"
    ):
        capture(source)


def test_grouped_attention_through_torchscript() -> None:
    class Grouped(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return F.scaled_dot_product_attention(q, k, k, enable_gqa=True)

    message = failed(Grouped(), (rand(2, 4, 5, 8), rand(2, 2, 5, 8)), "torchscript")
    assert "enable_gqa" in message and "--exporter dynamo" in message


def test_a_tensor_that_stays_in_fp32() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.proj(x + torch.ones(4))

    message = failed(Mixed(), (rand(2, 7, 4),), "dynamo", dtype="fp16")
    assert "does not run in fp16" in message and ".to(x.dtype)" in message and "torch.ones(4)" in message


def test_complex_rotation_through_torchscript() -> None:
    class Complex(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * 1j).flatten(-2)

    assert "real numbers" in failed(Complex(), (rand(2, 7, 4),), "torchscript")


def test_the_first_remedy_that_fits_is_told() -> None:
    assert remedy("RuntimeError: nobody knows", "y = x + 1") is None
    what, rewrite = remedy("X", "s[mask] = float('-inf')") or ("", "")
    assert "in place" in what and "masked_fill" in rewrite
    assert remedy("X", "if a == b: return") is None
    what, _ = remedy("No ONNX function found for <OpOverload(op='aten.foo.default'", "") or ("", "")
    assert "aten.foo.default" in what
    for code in ("n = lengths.max().item()", "for i in range(n):", "k = int(lengths.max())"):
        assert "values" in (remedy("", code) or ("",))[0]


def test_lines_are_the_users_and_not_a_vendors() -> None:
    assert is_users(__file__) and not is_users(torch.__file__) and not is_users("<string>")
    trace = f'File "{torch.__file__}", line 3, in f\n  File "{__file__}", line 1, in forward\n  File "<eval>", line 2'
    line = quoted_line(trace)
    assert (
        line is not None and line.file == __file__ and line.number == 1 and line.code.startswith('"""A failed export')
    )
    here = current_line(sys._getframe())
    assert here is not None and here.file == __file__ and "current_line(" in here.code
