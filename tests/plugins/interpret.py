"""Runs every call of problems.py through the kernel in Triton's interpreter (TRITON_INTERPRET=1); saves the outputs."""

import sys

import torch
from problems import CALLS

from plugins.contract import output_shape
from plugins.kernels.launch import launch

outputs = {}
for call in CALLS:
    for name, dtype in {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}.items():
        tensors = call.tensors(dtype)
        shape = output_shape(call.settings, {n: tuple(t.shape) for n, t in tensors.items()})
        outputs[f"{call.name} {name}"] = launch(call.settings, tensors, shape)
torch.save(outputs, sys.argv[1])
