"""The trials that may crash, hang or print, run as `python -m engines.probe WHAT NAME` in a process of their own.

The last line of stdout is the answer as JSON: {"works", "reason", "detail"}. `engines.providers.trial` reads it.
"""

import json
import sys
from typing import Any

from engines.errors import ToolkitError
from engines.ort_session import nodes_elsewhere
from engines.providers import PROVIDERS, sentence

_MATMUL = """<ir_version: 8, opset_import: ["": 17]> probe (float[2,2] a) => (float[2,2] y) { y = MatMul(a, a) }"""


def main(words: list[str]) -> int:
    """Runs one trial and prints its answer; the exit code is 0 whatever the answer."""
    what, name = words
    try:
        answer = {"provider": _provider, "vendor": _vendor, "torch": _torch}[what](name)
    except ToolkitError as error:
        answer = _answer(False, str(error).rstrip("."))
    except Exception as error:  # whatever a half-installed package throws is the answer
        answer = _answer(False, f"failed with {type(error).__name__}: {sentence(error)}")
    print("\n" + json.dumps(answer))
    return 0


def _provider(name: str) -> dict[str, Any]:
    """Multiplies a matrix on the provider and looks at the result and at where it was computed."""
    import numpy as np
    import onnx.parser
    import onnxruntime

    row = PROVIDERS[name]
    detail = {"version": onnxruntime.__version__}
    available = onnxruntime.get_available_providers()
    if row.ort not in available:
        return _answer(False, f"was built without {row.ort}", detail)
    if row.device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    model = onnx.parser.parse_model(_MATMUL).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=[row.ort, *row.behind], enable_fallback=0)
    if session.get_providers()[0] != row.ort:
        return _answer(False, f"fell back to {session.get_providers()[0]}", detail)
    matrix = np.array([[1, 2], [3, 4]], np.float32)
    (result,) = session.run(None, {"a": matrix})
    if not np.allclose(result, matrix @ matrix, rtol=1e-2):  # TF32 rounds to 10 bits; 7, 10, 15 and 22 need 5
        return _answer(False, f"computed a wrong product: {result.tolist()}", detail)
    if nodes_elsewhere(session, row):
        return _answer(False, "loads it, but gave a MatMul to another provider", detail)
    return _answer(True, "ran a MatMul there, with the right result", detail)


def _vendor(name: str) -> dict[str, Any]:
    """Builds an engine of one ReLU, on TensorRT-RTX for the first architecture it knows, which needs no GPU."""
    from engines import vendor

    loaded = vendor.load(name)
    trt = loaded.module
    detail = {"version": loaded.version, "sms": list(loaded.sms) if loaded.sms else None}
    logger = loaded.logger(lambda severity, text: None)
    builder = loaded.builder(logger)
    network = loaded.network(builder)
    layer = network.add_activation(network.add_input("x", trt.float16, (4,)), trt.ActivationType.RELU)
    network.mark_output(layer.get_output(0))
    config = builder.create_builder_config()
    if loaded.sms:
        loaded.aim(config, loaded.sms[0])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        return _answer(False, "imports, but failed to build a one-layer engine", detail)
    return _answer(True, "built a one-layer engine", detail)


def _torch(device: str) -> dict[str, Any]:
    """Adds up a tensor on the device in PyTorch."""
    import torch

    detail = {"version": torch.__version__, "cuda": torch.version.cuda}
    if torch.version.cuda is None:
        return _answer(False, f"{torch.__version__} is a CPU build", detail)
    total = torch.ones(4, device=device).sum().item()
    if total != 4:
        return _answer(False, f"computed a wrong sum on {device}", detail)
    return _answer(True, f"ran a sum on {device}, with the right result", detail)


def _answer(works: bool, reason: str, detail: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"works": works, "reason": reason, "detail": detail or {}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
