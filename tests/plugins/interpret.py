"""Runs calls of problems.py through a kernel in Triton's interpreter (TRITON_INTERPRET=1); saves the outputs.

interpret.py FILE          the ordinary kernel
interpret.py FILE decode   the decode kernel, in as many splits as problems.SPLITS says
interpret.py FILE peeled   the ordinary kernel, whole tiles of keys first, K and V by tensor descriptors
"""

import sys

import torch
from problems import CALLS, DECODE_CALLS, SPLITS, VARIANTS

from plugins.contract import output_shape
from plugins.kernels.launch import launch
from plugins.kernels.variants import Variant

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
kernel = sys.argv[2] if sys.argv[2:] else ""
chosen = {"decode": DECODE_CALLS, "peeled": [call for call in CALLS if call.name in VARIANTS]}.get(kernel, CALLS)
variant = Variant(16, 16, 4, 1, peeled=True, descriptors=True, specialized=True) if kernel == "peeled" else None
outputs = {}
for call in chosen:
    for name, dtype in DTYPES.items():
        tensors = call.tensors(dtype)
        shape = output_shape(call.settings, {n: tuple(t.shape) for n, t in tensors.items()})
        splits = SPLITS[name] if kernel == "decode" else 0
        outputs[f"{call.name} {name}"] = launch(call.settings, tensors, shape, variant, splits=splits)
torch.save(outputs, sys.argv[1])
