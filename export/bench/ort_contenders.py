"""Contenders that ONNX Runtime runs: one session each, the same options for all, inputs held as OrtValues."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from engines import providers
from engines.errors import ToolkitError
from engines.ort_runner import OrtRunner
from engines.ort_session import open_session, run_options, session_options
from export.bench.contender import Contender, Opened, Outputs, Unavailable

Model = str | os.PathLike[str] | bytes


def contender(
    name: str,
    kind: str,
    model: Model | Callable[[], Model],
    feeds: Mapping[str, np.ndarray],
    threads: int,
    *,
    route: str = "",
    stage: str = "",
    outputs: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    provider: str = "cpu",
) -> Contender:
    """Returns a model as a contender on a provider of ONNX Runtime.

    Args:
        name: As the tables call it.
        kind: As in `export.bench.contender`.
        model: Path or bytes, or what makes them, once; a ToolkitError of it, or Unavailable, says why it is NOT RUN.
        feeds: Inputs by name; those the graph does not take are left out.
        threads: Threads inside one operator.
        route: Which export it was made of.
        stage: Which stage of this project it is.
        outputs: What to call the graph's first outputs; the others are computed and not checked. All by default.
        without: Graph optimisers of ONNX Runtime to leave out.
        provider: "cpu" or "cuda".
    """

    @functools.cache
    def made() -> Model:
        try:
            return model() if callable(model) else model
        except ToolkitError as error:
            raise Unavailable(str(error)) from error

    def open_() -> Opened:
        try:
            if provider != "cpu":
                return resident(made(), feeds, provider)
            return opened(made(), feeds, threads, outputs, without)
        except ToolkitError as error:
            raise Unavailable(str(error)) from error

    return Contender(name, kind, open_, route, stage, made)


def resident(model: Model, feeds: Mapping[str, np.ndarray], provider: str) -> Opened:
    """Returns a session on a device, inputs and outputs bound there; a call ends when the device is done.

    Raises:
        UsageError: ONNX Runtime does not take the model, or an input is missing.
        BackendMissingError: The provider does not load, or has no kernel for a node that computes.
        ToolkitError: It fails while it runs.
    """
    runner = OrtRunner(model, provider)
    fed = {spec.name: feeds[spec.name] for spec in runner.inputs if spec.name in feeds}
    call = runner.held(fed)
    runner.run(fed)
    return Opened(call, lambda: runner.run(fed))


def opened(
    model: Model,
    feeds: Mapping[str, np.ndarray],
    threads: int,
    outputs: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
) -> Opened:
    """Returns a session that computes these inputs; every graph optimisation but those is on, spinning is off.

    Raises:
        UsageError: ONNX Runtime does not take the model.
        Unavailable: The graph takes an input that is not there, or fails while it runs.
    """
    import onnxruntime

    options = session_options(threads, "all", verbose=False)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    session = open_session(model, providers.provider("cpu"), options, verbose=False, without=without)
    wanted = [value.name for value in session.get_inputs()]
    missing = [name for name in wanted if name not in feeds]
    if missing:
        raise Unavailable(f"The graph takes {missing[0]!r}, which the workload does not have ({', '.join(feeds)}).")
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(feeds[name])) for name in wanted}
    names = [value.name for value in session.get_outputs()]
    shown = outputs or tuple(names)
    quiet = run_options(verbose=False)

    def run() -> Any:
        return session.run_with_ort_values(names, values, quiet)

    def arrays() -> Outputs:
        return {name: value.numpy() for name, value in zip(shown, run(), strict=False)}

    try:
        run()
    except Exception as error:  # ONNX Runtime's exceptions share no base class of their own
        raise Unavailable(f"It does not run: {providers.sentence(error)}.") from error
    return Opened(run, arrays)
