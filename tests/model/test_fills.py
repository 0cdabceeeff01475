import pytest
import torch

from export.model.fills import HALF_FILL, finite_fill


@pytest.mark.parametrize("fill", [-1e9, -1e6])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_fill_that_the_dtype_holds_is_kept(dtype, fill):
    assert finite_fill(fill, dtype) == fill


def test_half_precision_gets_a_fill_that_stays_finite_and_hides_every_key():
    fill = finite_fill(-1e9, torch.float16)
    assert fill == HALF_FILL == -32768
    scores = torch.tensor([3e4, -3e4, 0.0], dtype=torch.float16)
    assert (scores + fill).isfinite().all()
    assert torch.softmax(scores.masked_fill(torch.tensor([False, False, True]), fill), 0)[2] == 0
