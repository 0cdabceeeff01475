"""The exception tree.

```
ToolkitError                 exit 1
├── ParityError              exit 1   an output lies outside its derived error budget
├── FusionRequiredError      exit 1   --require asked for more fused attentions than there are
├── UsageError               exit 2   a bad flag, file, shape or model
│   ├── ModelFileError       exit 2   the ONNX file is missing, truncated, foreign or unsafe
│   ├── CacheFullError       exit 2   the key/value cache has no room for more tokens
│   ├── RaggedError          exit 2   rows of different lengths, and a graph that cannot hide padding
│   ├── CaptureError         exit 2   PyTorch could not export the module
│   └── LoweringRefusedError exit 2   the target would refuse or silently misread the graph
├── BackendMissingError      exit 3   a runtime, provider, package or GPU is not usable here
└── EngineBuildError         exit 4   TensorRT could not build
```
"""

from engines.errors import BackendMissingError, CacheFullError, EngineBuildError, RaggedError, ToolkitError, UsageError

__all__ = [
    "BackendMissingError",
    "CacheFullError",
    "CaptureError",
    "EngineBuildError",
    "FusionRequiredError",
    "LoweringRefusedError",
    "ModelFileError",
    "ParityError",
    "RaggedError",
    "ToolkitError",
    "UsageError",
]


class ParityError(ToolkitError):
    """An output lies outside its derived error budget."""


class FusionRequiredError(ToolkitError):
    """`--require` asked for more fused attentions than the graph has."""


class ModelFileError(UsageError):
    """The ONNX file is missing, truncated, not ONNX, or refers to data it must not."""


class CaptureError(UsageError):
    """PyTorch could not export the module; the message names the user's line and, where known, the rewrite."""


class LoweringRefusedError(UsageError):
    """The target would refuse this graph, or read it silently wrong."""
