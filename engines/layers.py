"""The layers of a built engine, read from the builder's log.

With detailed profiling verbosity both builders end their log with one message, "Layers:" and a line a layer. Reading it
needs no GPU, while the engine inspector has to deserialise the engine. A line (the spaces are exact):

    Name: _gemm_mha_v2_myl0_2, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [-1,-1,64], Strides: [...], ...,
    Datatype: Half, Format: ... }, ...], Constants: [], Outputs: [...], TacticName: _gemm_mha_v2_0x4d36b9..., StreamId:
    0, Metadata: [ONNX Layer: attn0]<0x1f>[ONNX Layer: relu0]

A number computed from shapes is copied to the device by a layer "ShapeHostToDevice", which has a ParameterType and no
constants or tactic. Engines of several streams have layers of the kinds "signal" and "wait" besides, which name an
EventId before Metadata.
Seen with tensorrt_rtx 1.7.1.116.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

_log = logging.getLogger(__name__)

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], (?:Constants: \[.*?\], )?"
    r"Outputs: \[(?P<outputs>.*?)\], (?:TacticName: (?P<tactic>.*?), |ParameterType: .*?, )"
    r"StreamId: -?\d+, (?:EventId: -?\d+, )?"
    r"Metadata: (?P<origin>.*)$"
)
_TENSOR = re.compile(
    r"\{ Name: (?P<name>.*?)(?:, Location: \w+)?, Dimensions: \[(?P<dims>[-\d,]*)\], .*?Datatype: (?P<dtype>\w+)"
)
_SCRATCH = re.compile(r"^Max Scratch Memory: (\d+) bytes", re.MULTILINE)
_ORIGIN = "[ONNX Layer: "
_BETWEEN_ORIGINS = "\x1f"

_DTYPES = {"Half": "float16", "Float": "float32", "BFloat16": "bfloat16", "Int32": "int32", "Int64": "int64"}


@dataclass(frozen=True)
class LayerTensor:
    """One tensor a layer reads or writes; dimensions as the log gives them, -1 where they are dynamic."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """One layer of an engine, which is one kernel launch or a piece of host work.

    Attributes:
        name: The builder's name for it, e.g. "_gemm_mha_v2_myl0_2".
        kind: The builder's type: "kgen" (a generated kernel), "gemm", "shape_call", "copy", ...
        tactic: Name of the kernel, e.g. "_gemm_mha_v2_0x4d36..."; "" where there is none.
        inputs, outputs: Its tensors.
        origins: Names of the ONNX nodes it came from; the builder leaves them out for some helper layers, and adds
            nodes whose arithmetic it shares with another's.
    """

    name: str
    kind: str
    tactic: str
    inputs: tuple[LayerTensor, ...]
    outputs: tuple[LayerTensor, ...]
    origins: tuple[str, ...]


def parse(messages: Iterable[str]) -> tuple[Layer, ...]:
    """Returns the layers that the log lists, in launch order; () where it lists none."""
    layers: list[Layer] = []
    for message in messages:
        if not message.startswith("Layers:\n"):
            continue
        for line in message.split("\n\n")[0].split("\n")[1:]:
            match = _LINE.match(line)
            if match:
                layers.append(_layer(match))
            elif line.strip():
                _log.warning("The builder's log has a layer that cannot be read: %s", line[:200])
    return tuple(layers)


def scratch(messages: Iterable[str]) -> int | None:
    """Returns the engine's scratch memory in bytes at the profile's largest shapes; None where the log is silent."""
    found = [int(m[1]) for message in messages if (m := _SCRATCH.search(message))]
    return max(found, default=None)


def _layer(match: re.Match[str]) -> Layer:
    origins = [o.removeprefix(_ORIGIN).removesuffix("]") for o in match["origin"].split(_BETWEEN_ORIGINS) if o]
    return Layer(
        match["name"],
        match["kind"],
        match["tactic"] or "",
        _tensors(match["inputs"]),
        _tensors(match["outputs"]),
        tuple(dict.fromkeys(origins)),
    )


def _tensors(text: str) -> tuple[LayerTensor, ...]:
    return tuple(
        LayerTensor(m["name"], _DTYPES.get(m["dtype"], m["dtype"].lower()), _shape(m["dims"]))
        for m in _TENSOR.finditer(text)
    )


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(d) for d in text.split(",") if d)
