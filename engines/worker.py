"""The process that runs a vendor's parser and builder, so that its crash is an answer and not our end.

TensorRT-RTX 1.7 segfaults on some valid graphs (see `engines.failure`). The protocol is JSON lines: one request on
stdin, then on stdout any number of {"log": [severity, text]} and {"progress": [phase, done, steps]}, and at last one of
{"built": {...}}, {"refused": text}, {"missing": text}, {"parse": [...]}, {"failed": text}. When stdin closes, whoever
asked is gone, and this process ends. `engines.build` is the only caller.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from engines import flags, memory, vendor
from engines.errors import BackendMissingError, ToolkitError
from engines.vendor import DTYPES, Vendor
from plugins import contract

_PROGRESS_SECONDS = 0.05


class _Stop(Exception):
    """Carries the last line of the answer."""

    def __init__(self, **answer: Any) -> None:
        super().__init__()
        self.answer = answer


def main() -> None:
    """Serves one request and exits."""
    with contextlib.suppress(ImportError, OSError, ValueError):  # a crash is reported, not dumped; POSIX only
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the vendor's libraries print must not end up between our lines
    lock = threading.Lock()  # the builder may log from threads of its own

    def send(**line: Any) -> None:
        with lock:
            out.write(json.dumps(line) + "\n")
            out.flush()

    try:
        send(built=build(request, send))
    except _Stop as stop:
        send(**stop.answer)
    except BackendMissingError as error:
        send(missing=str(error))
    except ToolkitError as error:
        send(refused=str(error))
    except Exception as error:  # a binding's own error: all of them end up as one sentence of ours
        send(failed=f"{type(error).__name__}: {error}")


def build(request: dict[str, Any], send: Callable[..., None]) -> dict[str, Any]:
    """Builds the engine of a request and writes it; returns what there is to tell.

    Args:
        request: "vendor", "onnx" and "engine" (paths), "sm", "profiles" ({input: [min, opt, max] shapes} each),
            "foreign" ([name, domain, op, whether it is a function] of nodes outside ONNX's domain), "flags"
            (`Flags.as_dict`).
        send: Called with log= or progress=.
    """
    loaded = vendor.load(request["vendor"])
    logger = loaded.logger(lambda severity, text: send(log=[severity, text]))
    builder = loaded.builder(logger)
    network = loaded.network(builder)
    ours = [n for n in request["foreign"] if contract.find(n[1], n[2]) and not n[3]]
    if ours:
        loaded.register_plugins(request["sm"])
    parser = loaded.module.OnnxParser(network, logger)
    _refuse_mistaken(parser, [n for n in request["foreign"] if n not in ours], loaded)
    if not parser.parse_from_file(request["onnx"]):
        raise _Stop(parse=[_parser_error(parser.get_error(i)) for i in range(parser.num_errors)])
    config = builder.create_builder_config()
    config.profiling_verbosity = loaded.module.ProfilingVerbosity.DETAILED
    config.progress_monitor = loaded.progress_monitor(_seldom(lambda *step: send(progress=step)))
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    for shapes in request["profiles"]:
        _add_profile(builder, config, inputs, shapes)
    loaded.aim(config, request["sm"])
    asked = flags.Flags.from_dict(request["flags"])
    flags.apply(loaded.module, config, asked)
    if asked.version_compatible:  # what later versions may lack travels in the engine
        config.plugins_to_serialize = parser.get_used_vc_plugin_libraries()
    timings = b""
    if asked.timing_cache:
        timings = flags.use_timing_cache(config, asked.timing_cache, lambda text: send(log=["WARNING", text]))
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if plan is None:
        raise _Stop(failed="")
    content = memoryview(plan)
    try:
        with open(request["engine"], "wb") as file:
            file.write(content)
    except OSError as error:
        raise _Stop(refused=f"The engine ({content.nbytes} bytes) cannot be written: {error.strerror}.") from error
    if asked.timing_cache:
        try:
            flags.keep_timing_cache(config, asked.timing_cache, timings)
        except ToolkitError as error:  # the engine is built: what it cost is not thrown away
            send(log=["WARNING", str(error)])
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    return {
        "version": loaded.version,
        "seconds": seconds,
        "size": content.nbytes,
        "memory": memory.peak(),
        "inputs": {t.name: DTYPES.get(t.dtype.name, t.dtype.name) for t in inputs},
        "shapes": {t.name: list(t.shape) for t in (*inputs, *outputs)},
        "outputs": {t.name: DTYPES.get(t.dtype.name, t.dtype.name) for t in outputs},
    }


def _refuse_mistaken(parser: Any, foreign: list[tuple[str, str, str, bool]], loaded: Vendor) -> None:
    """Refuses custom nodes and function calls that the parser would take for its own operator of that name."""
    for name, domain, op, function in foreign:
        if parser.supports_operator(op):
            what = (
                f"calls the model's function {domain}::{op}" if function else f"is the custom operator {domain}::{op}"
            )
            cure = (
                "Rename the function, or inline it (onnx.inliner.inline_local_functions)" if function else "Rename it"
            )
            raise _Stop(
                refused=f"Node {name!r} {what}, and {loaded.title} would silently compute its own {op} instead: it "
                f"looks operators up by name, whatever the domain. {cure}."
            )


def _parser_error(error: Any) -> dict[str, Any]:
    return {
        "name": error.node_name(),
        "op": error.node_operator(),
        "text": error.desc(),
        "check": error.func(),
        "functions": list(error.local_function_stack()),
    }


def _add_profile(builder: Any, config: Any, inputs: list[Any], shapes: dict[str, list[list[int]]]) -> None:
    if not any(-1 in tuple(t.shape) for t in inputs):
        return
    profile = builder.create_optimization_profile()
    for tensor in inputs:
        if tensor.is_shape_tensor:
            raise _Stop(
                refused=f"Input {tensor.name!r} decides shapes inside the graph, which an engine must know when it is "
                "built. Make it a constant, or take the size from another input's shape."
            )
        profile.set_shape(tensor.name, *shapes[tensor.name])
    config.add_optimization_profile(profile)


def _seldom(send: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
    """Returns `send` held to its first and last step of a phase and 20 steps a second between them."""
    last = 0.0

    def step(phase: str, done: int, steps: int) -> None:
        nonlocal last
        now = time.monotonic()
        if 0 < done < steps and now - last < _PROGRESS_SECONDS:
            return
        last = now
        send(phase, done, steps)

    return step


def _exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)
