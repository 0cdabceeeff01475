"""Text, a token at a time: the decoder of llama_like.py with a KV cache that the build puts in.

    python examples/generate.py

It builds a prefill and a step graph for ONNX Runtime, feeds them a prompt, and takes the likeliest token each time;
then it asks PyTorch for the same without a cache. With an NVIDIA GPU, `target="tensorrt-rtx"` and `generator(folder,
"tensorrt-rtx")` run the same loop on engines. From a command line the build is

    python -m export build examples/generate.py:make --target ort --decode --cache-length 64 -o out/generate
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

from llama_like import Decoder

import export

LAYERS, HIDDEN, VOCABULARY, CACHE = 2, 192, 256, 64


class Speaker(Decoder):
    """The decoder with the logits of every token: a step has one, a prompt has many."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """Returns the logits [batch, length, vocabulary]; `input_ids` is int64 [batch, length]."""
        return self.head(self.norm(self.hidden(input_ids)))


def make() -> tuple[nn.Module, dict[str, Tensor], dict[str, dict[int, torch.export.Dim]]]:
    """Returns the decoder, an example prompt, and the range of each axis that varies."""
    batch, length = torch.export.Dim("batch", min=1, max=4), torch.export.Dim("length", min=1, max=CACHE)
    model = Speaker(LAYERS, HIDDEN, feed_forward=2 * HIDDEN, vocabulary=VOCABULARY).eval()
    return model, {"input_ids": torch.randint(VOCABULARY, (2, 16))}, {"input_ids": {0: batch, 1: length}}


def spoken(folder: Path, prompt: np.ndarray, count: int) -> np.ndarray:
    """Returns the `count` tokens that follow a prompt [batch, length], int64 [batch, count], by the built graphs."""
    loop = export.generator(folder)
    (logits,) = loop.prefill({"input_ids": prompt}).values()
    found = [logits[:, -1:].argmax(-1)]
    while len(found) < count:
        (logits,) = loop.step({"input_ids": found[-1]}).values()
        found.append(logits.argmax(-1))
    return np.concatenate(found, axis=1)


def main(folder: Path = Path("out/generate"), count: int = 24) -> None:
    """Builds, generates, and compares with PyTorch."""
    report = export.build(f"{__file__}:make", target="ort", dtype="fp32", decode=True, cache_length=CACHE, out=folder)
    prompt = np.random.default_rng(0).integers(VOCABULARY, size=(2, 8))
    tokens = spoken(folder, prompt, count)
    print(f"{'PASSED' if report.passed else 'FAILED'}: {folder}\n{tokens}")

    torch.manual_seed(0)  # the seed of a build's random weights, unless --seed says another
    model, text = make()[0], torch.from_numpy(prompt)
    for _ in range(count):
        text = torch.cat((text, model(text)[:, -1:].argmax(-1)), dim=1)
    print("the same as PyTorch says" if np.array_equal(text[:, prompt.shape[1] :], tokens) else "DIFFERENT")


if __name__ == "__main__":
    main()
