"""Attention as people write it in PyTorch: the softmax by hand, its maximum taken off, sinks, masks that multiply."""

import torch
import torch.nn.functional as F
from spelling import HEADS, INF, SCALE, Spellings
from torch import Tensor, nn

ALL = Spellings()
spelling = ALL.add


def product(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.transpose(-2, -1) * SCALE


# The softmax by hand.


@spelling(dynamo=True)
def exponentials_by_hand(q, k, v):
    scores = product(q, k)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return weights / weights.sum(-1, keepdim=True) @ v


@spelling()
def exponentials_without_a_maximum(q, k, v):
    weights = product(q, k).exp()
    return (weights / weights.sum(dim=-1, keepdim=True)) @ v


@spelling(dynamo=True, mask="bool")
def exponentials_of_a_mask(q, k, v, m):
    scores = product(q, k).masked_fill(~m, -1e9)
    top, _ = torch.max(scores, dim=-1, keepdim=True)
    weights = torch.exp(scores - top)
    return torch.matmul(weights * weights.sum(-1, keepdim=True).reciprocal(), v)


@spelling()
def exponentials_with_axes_put_back(q, k, v):
    scores = product(q, k)
    weights = (scores - scores.max(dim=-1)[0].unsqueeze(-1)).exp()
    return (weights / weights.sum(-1).unsqueeze(3)) @ v


@spelling()
def exponentials_times_one_over_the_sum(q, k, v):
    weights = torch.exp(product(q, k))
    return (weights * (1.0 / torch.sum(weights, dim=3, keepdim=True))) @ v


@spelling(dynamo=True)
def normalised_after_the_values(q, k, v):
    """As the tiles of flash attention are explained: the sum divides the output."""
    scores = product(q, k)
    weights = torch.exp(scores - scores.max(dim=-1, keepdim=True).values)
    return weights @ v / weights.sum(dim=-1, keepdim=True)


@spelling()
def exponential_of_the_logarithm(q, k, v):
    return F.log_softmax(product(q, k), dim=-1).exp() @ v


@spelling(dynamo=True)
def logarithm_of_the_sum_taken_off(q, k, v):
    scores = product(q, k)
    return torch.exp(scores - torch.logsumexp(scores, dim=-1, keepdim=True)) @ v


@spelling(half=True)
def exponentials_in_float32(q, k, v):
    scores = product(q, k).float()
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)).to(q.dtype) @ v


@spelling(expect="nothing")
def one_more_in_the_sum(q, k, v):
    """Softmax plus one: the weights need not sum to one."""
    weights = torch.exp(product(q, k))
    return weights / (1.0 + weights.sum(-1, keepdim=True)) @ v


@spelling(expect="nothing")
def sum_over_the_queries(q, k, v):
    weights = torch.exp(product(q, k))
    return weights / (weights.sum(-1, keepdim=True) + 1e-6) @ v


@spelling(expect="nothing")
def exponentials_of_two_scores(q, k, v):
    return product(q, k).exp() / (product(q, k) * 2).exp().sum(-1, keepdim=True) @ v


@spelling(expect="nothing")
def exponential_features(q, k, v):
    """Linear attention: a softmax of Q's channels and one of K's rows, never of scores."""
    a, b = q.exp(), k.exp()
    return a @ (b.transpose(-2, -1) @ v) / (a @ b.sum(-2, keepdim=True).transpose(-2, -1))


# The row's maximum taken off before the softmax.


@spelling(dynamo=True)
def row_maximum_taken_off(q, k, v):
    scores = product(q, k)
    return torch.softmax(scores - scores.amax(-1, keepdim=True), dim=-1) @ v


@spelling(mask="bool")
def detached_maximum_taken_off_before_the_mask(q, k, v, m):
    scores = product(q, k)
    scores = scores - torch.max(scores, dim=-1, keepdim=True)[0].detach()
    return torch.softmax(scores.masked_fill(~m, INF), dim=-1) @ v


@spelling(half=True, dynamo=True)
def maximum_taken_off_in_float32(q, k, v):
    scores = product(q, k)
    return torch.softmax(scores.float() - scores.amax(-1, keepdim=True).float(), dim=-1).half() @ v


@spelling(scale=2.0 * SCALE)
def maximum_taken_off_and_scaled_back(q, k, v):
    """CogView's relaxed precision bottleneck."""
    scores = (q / 4.0) @ k.transpose(-2, -1) * SCALE
    return torch.softmax((scores - scores.amax(-1, keepdim=True)) * 8.0, dim=-1) @ v


@spelling(expect="K119")
def maximum_of_each_column_taken_off(q, k, v):
    scores = product(q, k)
    return torch.softmax(scores - scores.amax(-2, keepdim=True), dim=-1) @ v


@spelling(expect="K109")
def maximum_taken_off_and_capped(q, k, v):
    scores = product(q, k)
    return torch.softmax(torch.tanh(scores - scores.amax(-1, keepdim=True)), dim=-1) @ v


# Sinks: a column of logits beside the keys.


class _Sinks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.randn(HEADS))

    def column(self, q: Tensor) -> Tensor:
        return self.sink.view(1, HEADS, 1, 1).expand(q.size(0), -1, q.size(2), -1)


@spelling(mask="float", dynamo=True)
class Sink(_Sinks):
    """A learned logit beside the keys, dropped after the softmax."""

    def forward(self, q, k, v):
        return torch.softmax(torch.cat([product(q, k), self.column(q)], dim=-1), dim=-1)[..., :-1] @ v


@spelling(mask="float", dynamo=True)
class SinkBesideAMask(_Sinks):
    """As gpt-oss has it: the mask does not hide the sink, and the maximum is taken off."""

    def forward(self, q, k, v, f):
        combined = torch.cat(
            [product(q, k) + f, self.sink.reshape(1, -1, 1, 1).expand(q.size(0), -1, q.size(2), -1)], -1
        )
        combined = combined - combined.max(dim=-1, keepdim=True).values
        return F.softmax(combined, dim=-1, dtype=combined.dtype)[..., :-1] @ v


@spelling(mask="bool+float", dynamo=True)
class SinkInFront(_Sinks):
    def forward(self, q, k, v, m):
        scores = product(q, k).masked_fill(~m, INF)
        return torch.cat([self.column(q), scores], dim=-1).softmax(-1)[..., 1:] @ v


@spelling(mask="float")
class SinkWithAValueOfZero(_Sinks):
    def forward(self, q, k, v):
        weights = torch.softmax(torch.cat([product(q, k), self.column(q)], dim=-1), dim=-1)
        return weights @ torch.cat([v, torch.zeros_like(v[:, :, :1])], dim=2)


@spelling(mask="none")
def zero_beside_the_keys(q, k, v):
    """Softmax plus one, as a key of zeros."""
    scores = F.pad(product(q, k), (0, 1))
    return scores.softmax(-1)[..., :-1] @ v


@spelling(expect="K121")
class SinkThatTakesAKeyAlong(_Sinks):
    """One column too many is dropped."""

    def forward(self, q, k, v):
        return torch.softmax(torch.cat([product(q, k), self.column(q)], dim=-1), dim=-1)[..., :-2] @ v[:, :, 1:]


# Masks that multiply.


@spelling(mask="bool", dynamo=True)
def multiplied_and_subtracted(q, k, v, m):
    keep = m.to(q.dtype)
    return torch.softmax(product(q, k) * keep - 1e4 * (1 - keep), dim=-1) @ v


@spelling(mask="causal")
class MultipliedByATriangle(nn.Module):
    """GPT's first code: a triangle of ones in a buffer, sliced, multiplied into the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))

    def forward(self, q, k, v):
        b = self.bias[:, :, : q.size(-2), : k.size(-2)]
        return torch.softmax(product(q, k) * b + -1e9 * (1 - b), dim=-1) @ v


@spelling(mask="bool")
def multiplied_and_selected(q, k, v, m):
    keep = m.float()
    return torch.softmax(product(q, k) * keep + (keep - 1.0) * 1e9, dim=-1) @ v


@spelling(expect="K107")
def multiplied_alone(q, k, v, m):
    return torch.softmax(product(q, k) * m.float(), dim=-1) @ v


@spelling(expect="K107")
def multiplied_by_what_may_be_any_number(q, k, v, f):
    return torch.softmax(product(q, k) * f - 1e4 * (1 - f), dim=-1) @ v


@spelling(mask="bool")
def added_as_the_smallest_number_or_zero(q, k, v, m):
    bias = torch.where(m, 0.0, torch.finfo(q.dtype).min)
    return torch.softmax(product(q, k) + bias, dim=-1) @ v


@spelling(mask="bool", dynamo=True)
def added_as_one_minus_the_mask_times_the_smallest_number(q, k, v, m):
    bias = (1.0 - m.to(q.dtype)) * torch.finfo(q.dtype).min
    return torch.softmax(product(q, k) + bias, dim=-1) @ v


@spelling(mask="padding")
def inverted_mask_filled_with_the_smallest_number(q, k, v, kpad):
    inverted = 1.0 - kpad[:, None, None, :].to(q.dtype)
    bias = inverted.masked_fill(inverted.to(torch.bool), torch.finfo(q.dtype).min)
    return torch.softmax(product(q, k) + bias, dim=-1) @ v


@spelling(mask="float", half=True)
def added_in_half_precision(q, k, v, m):
    """-65504 + s is not -65504 in float16: it stays what is added."""
    bias = torch.where(m, 0.0, torch.finfo(q.dtype).min).to(q.dtype)
    return torch.softmax(product(q, k) + bias, dim=-1) @ v


@spelling(mask="padding+bool")
def added_twice(q, k, v, m, kpad):
    """Both masks at once are -inf, one alone is not: they do not become fills."""
    low = torch.finfo(q.dtype).min
    scores = product(q, k) + torch.where(m, 0.0, -1e9) + torch.where(kpad[:, None, None, :], 0.0, low)
    return torch.softmax(scores, dim=-1) @ v
