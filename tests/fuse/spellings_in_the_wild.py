"""Attention as it stands in well-known code, retold small: layouts, masks and biases as they come together there."""

import math

import torch
import torch.nn.functional as F
from spelling import HEADS, INF, SCALE, D, Spellings, heads
from torch import Tensor, nn

ALL = Spellings()
spelling = ALL.add


class Packed(nn.Module):
    """One projection to Q, K and V."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(heads(y) for y in self.qkv(x).chunk(3, dim=-1))


# Text.


@spelling(mask="padding", dynamo=True)
class AnnotatedTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))

    def forward(self, x, pad):
        q, k, v = (lin(x).view(x.size(0), -1, HEADS, D).transpose(1, 2) for lin in self.linears[:3])
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
        scores = scores.masked_fill(pad[:, None, None, :] == 0, -1e9)
        x = torch.matmul(scores.softmax(dim=-1), v).transpose(1, 2).contiguous().view(x.size(0), -1, 32)
        return self.linears[-1](x)


@spelling(mask="float")
class FirstBert(Packed):
    def forward(self, x, pad):
        q, k, v = self.heads(x)
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(D)
        scores = scores + (1.0 - pad[:, None, None].to(dtype=torch.float32)) * -10000.0
        context = torch.matmul(nn.Softmax(dim=-1)(scores), v).permute(0, 2, 1, 3).contiguous()
        return context.view(*context.size()[:-2], 32)


@spelling(scale=1.0, mask="padding+float", dynamo=True)
class RelativeBuckets(Packed):
    """T5: no scale, a bias by bucket of the distance, the padding added to it."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Embedding(8, HEADS)

    def forward(self, x, pad):
        q, k, v = self.heads(x)
        at = torch.arange(x.size(1))
        far = at[None, :] - at[:, None]
        near = far.abs() < 2
        large = 2 + (torch.log(far.abs().clamp(min=1).float() / 2) / math.log(8.0) * 2).long().clamp(max=1)
        bucket = (far > 0).long() * 4 + torch.where(near, far.abs(), large)
        bias = self.bias(bucket).permute([2, 0, 1]).unsqueeze(0) + torch.where(pad, 0.0, -1e9)[:, None, None, :]
        scores = torch.matmul(q, k.transpose(3, 2)) + bias
        return torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v)


@spelling(mask="padding+float", scale=(3 * D) ** -0.5)
class Disentangled(Packed):
    """DeBERTa: content to position and position to content, gathered by distance."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(HEADS, 9, D))

    def forward(self, x, pad):
        q, k, v = self.heads(x)
        at = torch.arange(x.size(1))
        far = ((at[:, None] - at[None, :]).clamp(-4, 4) + 4).expand(x.size(0), HEADS, -1, -1)
        scale = 1 / torch.sqrt(torch.tensor(D * 3, dtype=torch.float))
        scores = torch.matmul(q, k.transpose(-1, -2) * scale)
        bias = torch.gather(torch.matmul(q, self.position.transpose(-1, -2) * scale), -1, far)
        bias = bias + torch.gather(torch.matmul(k, self.position.transpose(-1, -2) * scale), -1, far).transpose(-1, -2)
        scores = (scores + bias).masked_fill(~pad[:, None, None], torch.finfo(x.dtype).min)
        return scores.softmax(-1) @ v


@spelling(mask="bool", traced="causal")
class HiddenByAValueInATensor(Packed):
    """GPT-J: a triangle of bytes, the scale and the fill as tensors, scores in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bias", torch.tril(torch.ones((32, 32), dtype=torch.bool))[None, None])
        self.scale_attn = torch.sqrt(torch.tensor(D, dtype=torch.float32))

    def forward(self, x):
        q, k, v = self.heads(x)
        causal = self.bias[:, :, k.size(-2) - q.size(-2) : k.size(-2), : k.size(-2)]
        scores = torch.matmul(q.to(torch.float32), k.to(torch.float32).transpose(-1, -2))
        scores = torch.where(causal, scores, torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype))
        return torch.matmul(nn.functional.softmax(scores / self.scale_attn, dim=-1).to(v.dtype), v)


@spelling(mask="padding+float", kv_heads=1)
class BiasBeforeTheScale(nn.Module):
    """Falcon with ALiBi: one K and V for all heads, the bias added before the norm factor."""

    def forward(self, q, gk, gv, kpad):
        slopes = torch.tensor([0.5, 0.25, 0.125, 0.0625])
        alibi = slopes[:, None] * ((kpad.long().cumsum(-1) - 1) * kpad.long())[:, None, :]
        scores = q @ gk[:, :1].transpose(-1, -2)
        mask = torch.where(kpad, 0.0, torch.finfo(q.dtype).min)[:, None, None, :]
        logits = (scores + alibi.view(q.size(0), HEADS, 1, -1)) * SCALE
        return F.softmax(logits + mask, dim=-1, dtype=q.dtype) @ gv[:, :1]


@spelling(mask="float", dynamo=True)
class ClampedAtTheSmallestNumber(Packed):
    """OPT: the sum with the mask is brought back to the smallest finite number."""

    def forward(self, x, pad, f):
        q, k, v = self.heads(x)
        scores = (
            torch.matmul(q * SCALE, k.transpose(-1, -2))
            + torch.where(pad, 0.0, torch.finfo(x.dtype).min)[:, None, None, :] * 1.0
        )
        scores = torch.max(scores + (f @ f.transpose(-1, -2)), torch.tensor(torch.finfo(scores.dtype).min))
        return F.softmax(scores, dim=-1) @ v


@spelling(mask="padding")
class NullKey(nn.Module):
    """x-transformers: a learned key and value in front, never hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.null = nn.Parameter(torch.randn(2, 1, HEADS, 1, D))

    def forward(self, q, k, v, kpad):
        k = torch.cat([self.null[0].expand(k.size(0), -1, -1, -1), k], dim=-2)
        v = torch.cat([self.null[1].expand(k.size(0), -1, -1, -1), v], dim=-2)
        keep = F.pad(kpad, (1, 0), value=True)[:, None, None, :]
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * SCALE
        dots = dots.masked_fill(~keep, -torch.finfo(dots.dtype).max)
        return torch.einsum("bhij,bhjd->bhid", dots.softmax(dim=-1, dtype=torch.float32), v)


@spelling(mask="padding")
class GatedMemory(Packed):
    """Flamingo: the row maximum detached, a tanh gate on the result."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.tensor([0.3]))

    def forward(self, x, pad):
        q, k, v = self.heads(x)
        sim = torch.einsum("...id,...jd->...ij", q * SCALE, k)
        sim = sim.masked_fill(~pad[:, None, None], -torch.finfo(sim.dtype).max)
        sim = sim - sim.amax(dim=-1, keepdim=True).detach()
        return (
            x + torch.einsum("...ij,...jd->...id", sim.softmax(dim=-1), v).transpose(1, 2).flatten(2) * self.gate.tanh()
        )


# Speech.


@spelling(mask="padding+float")
class RelativeShift(Packed):
    """Conformer: a second product shifted by padding, weights set to zero again."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.w = nn.Parameter(torch.randn(HEADS, 1, D)), nn.Parameter(torch.randn(HEADS, 1, D))
        self.position = nn.Linear(32, 32, bias=False)

    def forward(self, x, pad):
        q, k, v = self.heads(x)
        p = heads(self.position(torch.cat([x, x[:, 1:]], 1)))
        bd = (q + self.w) @ p.transpose(-2, -1)
        b, h, s, n = bd.shape
        bd = torch.cat([torch.zeros(b, h, s, 1), bd], dim=-1).view(b, h, n + 1, s)[:, :, 1:].view(b, h, s, n)[..., :s]
        scores = ((q + self.u) @ k.transpose(-2, -1) + bd) / math.sqrt(D)
        hidden = pad.unsqueeze(1).eq(0).unsqueeze(1)
        weights = torch.softmax(scores.masked_fill(hidden, torch.finfo(x.dtype).min), dim=-1).masked_fill(hidden, 0.0)
        return (weights @ v).transpose(1, 2).contiguous().view(b, -1, h * D)


@spelling(mask="causal", fixed=True)
class QuarterScales(Packed):
    """Whisper: the fourth root on both sides, K permuted at once, a triangle of -inf sliced from a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.empty(32, 32).fill_(INF).triu_(1))

    def forward(self, x):
        q, k, v = (y.view(*y.shape[:2], HEADS, -1) for y in self.qkv(x).split(32, -1))
        scale = (32 // HEADS) ** -0.25
        qk = (q.permute(0, 2, 1, 3) * scale) @ (k.permute(0, 2, 3, 1) * scale) + self.mask[: x.size(1), : x.size(1)]
        return (
            (F.softmax(qk.float(), dim=-1).to(q.dtype) @ v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).flatten(start_dim=2)
        )


# Pictures.


@spelling(scale=10.0, mask="float", dynamo=True)
class CosineWindows(nn.Module):
    """Swin V2: cosine attention, a clamped temperature, a bias through a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones((HEADS, 1, 1))))
        self.bias = nn.Linear(1, HEADS)

    def forward(self, q, k, v, f):
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.logit_scale, max=math.log(1.0 / 0.01)).exp()
        bias = 16 * torch.sigmoid(self.bias(f[:, 0, :, :, None]).permute(0, 3, 1, 2))
        return nn.Softmax(dim=-1)(scores + bias) @ v


@spelling(scale=0.5, mask="block", traced="bool")
class WithoutItself(Packed):
    """Locality self-attention: a learned temperature, no patch sees itself."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.log(torch.tensor(0.5)))

    def forward(self, x):
        q, k, v = self.heads(x)
        dots = torch.matmul(q, k.transpose(-1, -2)) * self.temperature.exp()
        dots = dots.masked_fill(torch.eye(x.size(1)).bool(), -torch.finfo(dots.dtype).max)
        return torch.matmul(dots.softmax(-1), v)


@spelling(dynamo=True, scale=32**-0.5, kv_heads=1)
class Picture(nn.Module):
    """A diffusion model's autoencoder: one head, channels first, V on the left of the weights turned."""

    def forward(self, x):
        q, k, v = x, (x + 1).permute(0, 2, 1), (x * 2).permute(0, 2, 1)
        w = torch.bmm(q, k) * (int(x.size(-1)) ** (-0.5))
        return torch.bmm(v, F.softmax(w, dim=2).permute(0, 2, 1))


@spelling()
class ReducedKeys(Packed):
    """PVT, SegFormer: keys and values of a shorter picture; CvT: projections by convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Conv1d(32, 32, 3, 2, 1)

    def forward(self, x):
        q, _, _ = self.heads(x)
        _, k, v = self.heads(self.reduce(x.transpose(1, 2)).transpose(1, 2))
        return ((q * SCALE) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


@spelling()
class HeadsScaled(Packed):
    """NormFormer: a factor for each head of the result."""

    def forward(self, x):
        q, k, v = self.heads(x)
        out = ((q @ k.transpose(-1, -2) * SCALE).softmax(-1) @ v).permute(2, 0, 1, 3)
        return torch.einsum("tbhd,h->tbhd", out, torch.tensor([1.0, 2.0, 0.5, 3.0]))


# What only looks like it.


@spelling(expect="nothing")
def cosine_features(q, k, v):
    """cosFormer: relu features weighted by the position's cosine, no softmax."""
    a, b = q.relu(), k.relu()
    return a @ (b.transpose(-1, -2) @ v) / (a @ b.sum(-2, keepdim=True).transpose(-1, -2) + 1e-6)


@spelling(expect="K210")
def only_the_largest(q, k, v):
    scores = q @ k.transpose(-1, -2) * SCALE
    least = scores.topk(2, dim=-1).values[..., -1:]
    return scores.masked_fill(scores < least, INF).softmax(-1) @ v


@spelling(expect="K102")
def graph_attention(q, k, v, m):
    scores = F.leaky_relu(q @ k.transpose(-1, -2), 0.2)
    return scores.masked_fill(~m, -9e15).softmax(-1) @ v


@spelling(expect="K102")
def added_attention(q, k, v):
    """Bahdanau: no product of Q and K, a sum."""
    return torch.tanh(q.unsqueeze(3) + k.unsqueeze(2)).sum(-1).softmax(-1) @ v


@spelling(expect="K102")
def gaussian_of_the_distance(q, k, v):
    distance = (q.unsqueeze(3) - k.unsqueeze(2)).square().sum(-1)
    return distance.neg().softmax(-1) @ v


@spelling(expect="nothing")
def sigmoid_attention(q, k, v):
    return torch.sigmoid(q @ k.transpose(-1, -2) * SCALE - math.log(7)) @ v
