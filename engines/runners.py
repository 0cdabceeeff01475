"""The runners by name, whichever file they live in; importing this loads no runtime."""

from engines.engine_runner import EngineRunner
from engines.ort_runner import OrtRunner
from engines.runner import Latency, Runner, TensorSpec

__all__ = ["EngineRunner", "Latency", "OrtRunner", "Runner", "TensorSpec"]
