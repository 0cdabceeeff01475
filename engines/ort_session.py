"""Opens an ONNX Runtime session on the provider that was asked for, or says why there is none.

ONNX Runtime falls back in three places, each silent or nearly so: a provider that does not load gives a CPU session, a
provider that fails gives a second session in Python, and a node without a kernel goes to the CPU. All three are looked
at here. Small integer work on shapes belongs on the CPU even in a good CUDA session, so of the third kind only nodes
that compute on the model's data are refused.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from engines import providers
from engines.errors import BackendMissingError, ToolkitError, UsageError
from engines.providers import Provider, sentence

OPTIMIZATION = {
    "all": "ORT_ENABLE_ALL",
    "layout": "ORT_ENABLE_LAYOUT",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disable": "ORT_DISABLE_ALL",
}

# What exporters and ONNX Runtime use to compute shapes, indices and small constants, which ONNX Runtime itself moves
# to the CPU because copying their operands to the GPU costs more than the work.
_BOOKKEEPING = frozenset(
    """
    Shape Size Constant ConstantOfShape Range Gather GatherElements GatherND Slice Concat Split Squeeze Unsqueeze
    Reshape Flatten Expand Tile Identity Cast CastLike Add Sub Mul Div Mod Neg Abs Floor Ceil Min Max Equal Less
    LessOrEqual Greater GreaterOrEqual Not And Or Where NonZero ReduceProd ReduceSum ReduceMax ReduceMin
    ScatterElements ScatterND TopK Transpose MemcpyFromHost MemcpyToHost If Loop Scan
    """.split()  # noqa: SIM905
)

_INFO, _WARNING, _FATAL = 1, 2, 4


def session_options(
    threads: int | None, optimization: str, verbose: bool, *, lean: bool = False, data: Path | None = None
) -> Any:
    """Returns onnxruntime.SessionOptions.

    Args:
        threads: Threads inside one operator; None leaves the choice to ONNX Runtime.
        optimization: A key of `OPTIMIZATION`.
        verbose: Let ONNX Runtime write its log to stderr.
        lean: Keep no second copy of the weights: external data is mapped, not packed for speed, and what is cast to
            another type is cast when it is needed. Takes the place of `optimization`.
        data: Folder of the external data of a model given as bytes.

    Raises:
        UsageError: The level is unknown or `threads` is below 1.
    """
    import onnxruntime

    if optimization not in OPTIMIZATION:
        raise UsageError(f"There is no optimisation level {optimization!r}; choose one of {', '.join(OPTIMIZATION)}.")
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot run anything: give 1 or more, or leave it out.")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, OPTIMIZATION[optimization])
    options.log_severity_level = _INFO if verbose else _FATAL
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if lean:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED  # else every cast of a weight comes first
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False  # what is freed is given back
        options.add_session_config_entry("session.disable_prepacking", "1")
    if data is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(data))
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def run_options(verbose: bool) -> Any:
    """Returns onnxruntime.RunOptions whose log is as loud as the session's."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _INFO if verbose else _FATAL
    return options


def open_session(
    model: str | os.PathLike[str] | bytes, row: Provider, options: Any, *, verbose: bool, without: Sequence[str] = ()
) -> Any:
    """Returns an onnxruntime.InferenceSession whose first provider is the one asked for.

    Args:
        model: Path of an .onnx file, or the serialised model.
        row: The provider.
        options: From `session_options`.
        verbose: Let ONNX Runtime write its log to stderr.
        without: Graph optimisers of ONNX Runtime to leave out, by their names.

    Raises:
        UsageError: The file is missing, or ONNX Runtime does not accept the model.
        BackendMissingError: The provider does not load here, or has no kernel for a node and nobody else has.
    """
    import onnxruntime

    name = shown(model)
    if not isinstance(model, bytes):
        if not Path(model).is_file():
            raise UsageError(f"There is no model file {name}.")
        model = os.fspath(model)
    available = onnxruntime.get_available_providers()
    if row.ort not in available:
        raise _missing(row, f"ONNX Runtime {onnxruntime.__version__} as installed was built without {row.ort}.")
    if row.device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()
    chain = [_asked(name) for name in (row.ort, *(p for p in row.behind if p in available))]
    try:
        with _quiet(verbose):
            session = onnxruntime.InferenceSession(
                model, options, providers=chain, enable_fallback=0, disabled_optimizers=list(without)
            )
    except Exception as error:  # its exceptions share no base class of their own
        raise _refused(error, name, row) from error
    first = session.get_providers()[0]
    if first != row.ort:
        outcome = providers.try_provider(row.name)  # a child process, whose log can be read for the cause
        cause = f"fell back to {first} for this model" if outcome.works else outcome.reason
        raise _missing(row, f"ONNX Runtime {cause}.")
    return session


def _asked(provider: str) -> str | tuple[str, dict[str, str]]:
    """Returns a provider and what is asked of it: CUDA's rounds the operands of float32 products to TF32 by itself."""
    return (provider, {"use_tf32": "0"}) if provider == "CUDAExecutionProvider" else provider


def nodes_elsewhere(session: Any, row: Provider) -> tuple[str, ...] | None:
    """Returns "node (operator)" of every node that another provider got, or None where ONNX Runtime does not say."""
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    return tuple(
        f"{node.name or 'unnamed'} ({node.op_type})"
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != row.ort
        for node in part.get_nodes()
    )


def refuse_fallback(nodes: tuple[str, ...] | None, row: Provider, name: str) -> None:
    """Returns if the nodes that another provider got are bookkeeping on shapes and indices.

    Raises:
        BackendMissingError: One of them computes on the model's data.
    """
    computing = [node for node in nodes or () if node.rpartition("(")[2].rstrip(")") not in _BOOKKEEPING]
    if computing:
        more = f" and {len(computing) - 3} more" if len(computing) > 3 else ""
        raise BackendMissingError(
            f"{row.name} was asked for, but ONNX Runtime has no {row.name} kernel for {', '.join(computing[:3])}{more} "
            f"of {name} and would run them elsewhere without saying so. Run a graph lowered for ONNX Runtime "
            "(python -m export build MODEL --target ort), take another --provider, or accept it in Python with "
            "allow_fallback=True."
        )


def shown(model: str | os.PathLike[str] | bytes) -> str:
    """Returns what messages call the model."""
    return "the model in memory" if isinstance(model, bytes) else os.fspath(model)


def _refused(error: Exception, name: str, row: Provider) -> ToolkitError:
    kind = type(error).__name__
    if kind == "NotImplemented":
        return BackendMissingError(
            f"ONNX Runtime has no {row.name} kernel for an operator of {name}: {sentence(error)}. bfloat16 and some "
            "float16 operators have none on the CPU: run it with --provider cuda, or export it in fp32."
        )
    if row.device != "cpu" and kind in ("RuntimeError", "EPFail", "ValueError"):
        return _missing(row, f"ONNX Runtime could not start it: {sentence(error)}.")
    return UsageError(
        f"ONNX Runtime does not accept {name}: {sentence(error)}. It must be a whole ONNX file, with its external "
        "data beside it, and with operators and an opset that this ONNX Runtime knows."
    )


def _missing(row: Provider, what: str) -> BackendMissingError:
    return BackendMissingError(f"The provider {row.name} is not usable here. {what} To use it: {row.remedy}.")


@contextlib.contextmanager
def _quiet(verbose: bool) -> Iterator[None]:
    """Keeps the log of provider loading off stderr; that logger belongs to the process, so it is put back."""
    import onnxruntime

    if not verbose:
        onnxruntime.set_default_logger_severity(_FATAL)
    try:
        yield
    finally:
        onnxruntime.set_default_logger_severity(_WARNING)  # its documented default; what it was cannot be asked
