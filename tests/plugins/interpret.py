"""Runs calls of problems.py through a kernel in Triton's interpreter (TRITON_INTERPRET=1); saves the outputs.

interpret.py FILE          the ordinary kernel
interpret.py FILE decode   the decode kernel, in as many splits as problems.SPLITS says
"""

import sys

import torch
from problems import CALLS, DECODE_CALLS, SPLITS

from plugins.contract import output_shape
from plugins.kernels.launch import launch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
decode = sys.argv[2:] == ["decode"]
outputs = {}
for call in DECODE_CALLS if decode else CALLS:
    for name, dtype in DTYPES.items():
        tensors = call.tensors(dtype)
        shape = output_shape(call.settings, {n: tuple(t.shape) for n, t in tensors.items()})
        splits = SPLITS[name] if decode else 0
        outputs[f"{call.name} {name}"] = launch(call.settings, tensors, shape, splits=splits)
torch.save(outputs, sys.argv[1])
