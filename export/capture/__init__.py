"""From a PyTorch module to an ONNX graph that has been run: sources, dtypes, both exporters, and the check."""

from export.capture.contract import Captured, Source, TensorSpec
from export.capture.exporting import capture
from export.capture.source import is_onnx, load_source, of_module

__all__ = ["Captured", "Source", "TensorSpec", "capture", "is_onnx", "load_source", "of_module"]
