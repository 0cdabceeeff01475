"""Conversion is a copy; RoPE angles stay fp32; the reference rounds before it widens."""

import pytest
import torch
from torch import nn

from export.capture.precision import cast, reference, to_dtype
from export.errors import UsageError
from export.parity.budgets import ACCUMULATOR_U, graph_budget
from export.parity.precision import precision


class Rotary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        angles = 10000.0 ** (-torch.arange(0, 4, 2) / 4)
        self.register_buffer("inv_freq", angles)
        self.register_buffer("freqs_cis", torch.polar(torch.ones(2), angles), persistent=False)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("steps", torch.arange(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.shape[1])
        angle = (positions[:, None] * self.inv_freq).repeat(1, 2)
        return self.proj(x) * angle.cos().to(x.dtype)


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_weights_are_converted_and_angles_are_not(dtype: str, kind: torch.dtype) -> None:
    module = Rotary().eval()
    made = to_dtype(module, dtype)
    assert made is not module and module.proj.weight.dtype is torch.float32  # a copy
    assert made.proj.weight.dtype is made.cos.dtype is kind
    assert made.inv_freq.dtype is torch.float32 and torch.equal(made.inv_freq, module.inv_freq)
    assert made.freqs_cis.dtype is torch.complex64 and torch.equal(made.freqs_cis, module.freqs_cis)
    assert made.steps.dtype is torch.int64
    assert not made.training and not made.proj.weight.requires_grad


def test_a_modules_own_protection_of_its_tables_is_respected() -> None:
    from export.model.rope import Float32Buffers

    class Tables(Float32Buffers):
        float32_buffers = ("cos",)

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("cos", torch.rand(3))

    assert to_dtype(nn.Sequential(Tables()), "fp16")[0].cos.dtype is torch.float32


def test_the_reference_has_the_rounded_weights_in_float64() -> None:
    module = Rotary().eval()
    wide = reference(module, "bf16")
    assert wide.proj.weight.dtype is torch.float64 and wide.inv_freq.dtype is torch.float32
    assert torch.equal(wide.proj.weight, module.proj.weight.bfloat16().double())
    assert not torch.equal(wide.proj.weight, module.proj.weight.double())
    x = torch.randn(2, 300, 4).bfloat16()
    want, bf16 = wide(x.double()), precision("bf16")
    # Product, cosine and result are each rounded to bfloat16, less than four units in all; sums are float32's.
    sums = 5 * ACCUMULATOR_U * (x.double().abs() @ wide.proj.weight.abs().T + wide.proj.bias.abs())
    room = torch.from_numpy(graph_budget(want.detach().numpy(), sums.detach().numpy(), bf16))
    right = to_dtype(module, "bf16")
    assert ((right(x).double() - want).abs() <= room).all()
    right.inv_freq = right.inv_freq.bfloat16()  # angles of position 299 in half precision
    assert not ((right(x).double() - want).abs() <= room).all()


def test_a_weight_beyond_fp16_is_named_and_fits_bf16() -> None:
    module = nn.Linear(2, 2)
    module.weight.data[0, 0] = 1e5
    with pytest.raises(UsageError, match=r"`weight` reaches 100000, beyond fp16's largest number 65504.*bf16"):
        to_dtype(module, "fp16")
    assert to_dtype(module, "bf16").weight.isfinite().all()


def test_unknown_dtypes_and_modules_that_do_not_copy() -> None:
    with pytest.raises(UsageError, match="choose one of fp32, fp16, bf16"):
        to_dtype(nn.Identity(), "int8")
    module = nn.Linear(2, 2)
    module.computed = module.weight * 2  # as old-style weight_norm keeps it
    with pytest.raises(UsageError, match=r"Linear cannot be copied.*weight_norm"):
        to_dtype(module, "fp16")


def test_cast_converts_floats_and_copies_the_rest() -> None:
    ids = torch.tensor([1])
    made = cast({"x": torch.zeros(2), "past": ((torch.zeros(1), None),), "ids": ids, "flag": True}, torch.float16)
    assert made["x"].dtype is made["past"][0][0].dtype is torch.float16
    assert made["past"][0][1] is None and made["flag"] is True
    assert made["ids"] is not ids and torch.equal(made["ids"], ids)
