"""Proof that a block means the same after fusing: both sides run on ONNX Runtime over adversarial inputs."""
