"""ONNX Runtime 1.31's highest optimisation level ends the process on fp16 encoder layers; ours stays below it."""

import subprocess
import sys
import textwrap
from pathlib import Path

CODE = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, onnx_ir as ir, torch
from export.capture import capture, of_module
from engines.runners import OrtRunner

layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
captured = capture(of_module("layer", layer, (torch.randn(2, 9, 64),)), dtype="fp16", exporter="torchscript")
path = sys.argv[1]
ir.save(captured.model, path)
name = captured.inputs[0].name
(out,) = OrtRunner(path).run({name: np.ones((2, 9, 64), np.float16)}).values()
print("shape", out.shape)
"""


def test_an_fp16_encoder_layer_runs_at_the_default_level(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(CODE), str(tmp_path / "layer.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "shape (2, 9, 64)" in done.stdout
