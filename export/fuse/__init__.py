"""Fuses softmax attention in an ONNX graph into `ai.onnx::Attention`, and says why each one that stayed did.

The flow is in `engine.py`; what an attention may look like, in `reader.py` and `weights.py`; when it is one op, in
`contract.py`; what is written, in `emit.py`. Three rooms have their own folders: `masks/`, `rotary_embedding/`, and
`proof/`, which runs each block before and after.
"""

from export.fuse.engine import FuseResult, Options, fuse
from export.fuse.rows import Attention, Summary, Verification, as_json, summarise

__all__ = ["Attention", "FuseResult", "Options", "Summary", "Verification", "as_json", "fuse", "summarise"]
