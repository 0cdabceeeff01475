"""A ready ONNX file as the subject of a build: there is no PyTorch module, so the file itself is the reference.

Its truth is the same graph in float64 (`export.onnx_truth`), and the yardstick of its error budget is the file's own
error at its dtype: run on ONNX Runtime as it is, and with each step moved by up to one unit in the last place. A file
in fp32 that another precision is asked of is converted first, and judged as it was (`export.precision.yardstick`).
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from export import external_data, model_file, onnx_cases, onnx_judge, onnx_measure
from export.errors import ToolkitError, UsageError
from export.ort_view import open_graph
from export.precision import yardstick
from export.precision.convert import convert
from export.subject import Exported, of_defaults

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from export.decode.truth import Truth
    from export.parity import ParityReport
    from export.parity.compare import Expected

    Arrays = dict[str, npt.NDArray[np.generic]]

WIDENED = "exported-widened"
"""The stage of a graph in bf16 that ONNX Runtime's CPU provider can run: in float32, which shows all but rounding."""

_PIECE = 1 << 24  # numbers looked at at once: what a comparison of all weights returns would not be small
_DTYPES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16", ir.DataType.FLOAT: "fp32"}


def dtype_of(model: ir.Model) -> str:
    """Returns the dtype a graph computes in: the least precise floating-point type of its inputs and weights."""
    held = {value.dtype for value in model.graph.inputs}
    held |= {v.const_value.dtype for g in model.graphs() for v in g.initializers.values() if v.const_value is not None}
    return next((name for dtype, name in _DTYPES.items() if dtype in held), "fp32")


class OnnxSubject:
    """An ONNX file."""

    kind = "onnx"

    def __init__(self, path: Path, dtype: str, seed: int, because: str = "no PyTorch source was given") -> None:
        """Reads the file; `because` says why it is its own truth.

        Raises:
            ModelFileError: It cannot be read as an ONNX model.
            UsageError: A weight is NaN, or the graph has an operator that nothing here can run.
        """
        self._path, self._dtype, self._seed, self._because = path, dtype, seed, because
        self._model = model_file.load(path)
        self._how = "the highest precision that runs"
        _refuse_unknown(self._model, path)
        _refuse_nan(self._model, path)
        self._converted = convert(self._model, dtype) if dtype_of(self._model) != dtype else None

    @property
    def truth(self) -> str:
        """What the stages are compared with, said more exactly once it has been run."""
        rounded = f", weights rounded to {self._dtype} first" if self._converted else ""
        return f"{self._path.name} itself in {self._how}{rounded} ({self._because})"

    @property
    def dims(self) -> Mapping[str, tuple[int, int, int]]:
        """Nothing: a file names its dimensions and gives them no sizes."""
        return {}

    def parts(self) -> dict[str, str]:
        """The file's bytes, and those of its external data."""
        from export import digest

        return digest.of_onnx(self._path)

    def exported(self) -> Exported:
        """Returns the file's graph and what it says about itself."""
        model = self._converted.model if self._converted else self._model
        graph = model.graph
        weights = graph.initializers
        opset = model.opset_imports.get("", model.opset_imports.get("ai.onnx", 0))
        return Exported(
            model,
            tuple(onnx_cases.tensor(value) for value in graph.inputs if value.name not in weights),
            tuple(str(value.name) for value in graph.outputs),
            opset,
            " ".join(filter(None, (model.producer_name, model.producer_version))) or "an unnamed exporter",
            (self._converted.note(self._dtype),) if self._converted else (),
        )

    def recalled(self, exported: Exported) -> Exported:
        """Returns the graph of an earlier build as it is."""
        return exported

    def refuse_sizes(
        self, exported: Exported, dims: Mapping[str, tuple[int, int, int]], defaulted: Collection[str] = ()
    ) -> None:
        """Runs the file at the profile's corners, since a size baked in at export shows nowhere else.

        Raises:
            UsageError: ONNX Runtime cannot run the file, or not at such a size.
        """
        if dtype_of(self._model) == "bf16":
            return  # ONNX Runtime's CPU provider has too few bfloat16 kernels to ask
        runner = open_graph(self._path)
        for corner in range(3):
            sizes = {name: sizes[corner] for name, sizes in dims.items()}
            try:
                runner.run(self._as_in_the_file(onnx_cases.draw(exported.inputs, sizes, self._seed)))
            except ToolkitError as error:
                text = ", ".join(f"{name}={size}" for name, size in sizes.items())
                hint = of_defaults(dims, defaulted)
                raise UsageError(
                    f"{self._path} does not run at {text or 'its fixed sizes'}: {error}{f' {hint}' if hint else ''}"
                ) from error

    def judge(
        self,
        exported: Exported,
        stages: Mapping[str, Any],
        profile: Mapping[str, tuple[int, int, int]],
        masked_rows: str,
    ) -> "ParityReport":
        """Runs every stage on random inputs of several sizes and compares them with the file's float64 twin."""
        from export.parity.result import NOT_RUN, ParityReport, ParityRow

        if dtype_of(self._model) == "bf16":
            reason = "without a PyTorch source the yardstick is ONNX Runtime, whose CPU provider lacks bfloat16 kernels"
            return ParityReport(
                tuple(ParityRow("typical", s, NOT_RUN, reason=reason) for s in stages), self._dtype, masked_rows
            )
        cases = list(onnx_cases.cases(exported.inputs, profile, self._seed))
        if self._dtype == "bf16":
            stages = {WIDENED: yardstick.widened(exported.model), **stages}
        self._how, rows = onnx_judge.judged(
            lambda: self._measure(cases[0][1]), cases, stages, self._dtype, own=not self._converted
        )
        return ParityReport(rows, self._dtype, masked_rows)

    def feeds(self, exported: Exported, profile: Mapping[str, tuple[int, int, int]]) -> "Iterator[tuple[str, Arrays]]":
        """Returns the cases as they are drawn."""
        return onnx_cases.cases(exported.inputs, profile, self._seed)

    def whole(self, exported: Exported) -> "Truth":
        """Returns the file in float64."""
        from export.decode.truth import OnnxTruth

        return OnnxTruth(self, exported)

    def draw(self, exported: Exported, sizes: Mapping[str, int]) -> "Arrays":
        """Returns random inputs at these sizes of its dimensions."""
        return onnx_cases.draw(exported.inputs, sizes, self._seed)

    def expected(self, feeds: "Arrays") -> "tuple[Expected, ...]":
        """Returns what each output must be for these feeds, at the file's own dtype.

        Raises:
            UsageError: The file does not run on them.
        """
        measure = self._measure(feeds)
        return onnx_measure.expected(measure.truth(feeds), measure.runs(feeds))

    def _measure(self, feeds: "Arrays") -> onnx_measure.Measure:
        if self._converted:
            return onnx_measure.of_converted(self._converted, self._dtype, feeds)
        return onnx_measure.of_file(self._model, self._path, feeds)

    def _as_in_the_file(self, feeds: "Arrays") -> "Arrays":
        """Returns feeds at the dtype of the build in the types of a file that was converted."""
        if not self._converted:
            return feeds
        half = ("float16", "bfloat16")
        return {name: x.astype("float32") if x.dtype.name in half else x for name, x in feeds.items()}


def _refuse_unknown(model: ir.Model, path: Path) -> None:
    unknown = [op for op in model_file.custom_operators(model) if not op.startswith("com.microsoft")]
    if unknown:
        raise UsageError(
            f"{path} uses {', '.join(unknown)}, which is no ONNX operator: without its library the file cannot be run, "
            "so nothing built from it could be checked. `python -m export fuse` fuses the attentions of such a file."
        )


def _refuse_nan(model: ir.Model, path: Path) -> None:
    import numpy as np

    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or not tensor.dtype.is_floating_point() or tensor.dtype.bitwidth < 16:
                continue
            flat = tensor.numpy().reshape(-1)
            bad = sum(int(np.isnan(flat[i : i + _PIECE]).sum()) for i in range(0, flat.size, _PIECE))
            del flat
            external_data.release(tensor)
            if bad:
                raise UsageError(
                    f"The weight {name!r} of {path} holds {bad} NaN of {tensor.size} values: no output can be judged. "
                    "Load good weights and export again."
                )
