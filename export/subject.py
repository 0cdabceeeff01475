"""What a build is about, once loaded: something that exports to a graph and knows the truth its stages are judged by.

There are two kinds: a PyTorch module (here) and a ready ONNX file (`export.onnx_subject`).
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from export.errors import ToolkitError, UsageError
from export.spec import Spec

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx_ir as ir

    from export.capture import Source
    from export.decode.truth import Truth
    from export.parity import ParityReport
    from export.parity.case import ParityCase


@dataclass(frozen=True)
class Tensor:
    """One input or output of the graph: name, numpy or ml_dtypes dtype name, sizes and names of dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class Exported:
    """The graph everything after it starts from.

    Attributes:
        model: The graph.
        inputs: Its inputs.
        outputs: The names of its outputs.
        opset: The opset that was written.
        exporter: What wrote it: "dynamo", "torchscript", or the producer an ONNX file names.
        warnings: What the user should know about the export.
        raw: What the subject itself needs again to judge.
    """

    model: "ir.Model"
    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...]
    opset: int
    exporter: str
    warnings: tuple[str, ...] = ()
    raw: Any = field(default=None, repr=False, compare=False)


class Subject(Protocol):
    """What the pipeline asks of either kind."""

    @property
    def kind(self) -> str:
        """Either "pytorch" or "onnx"."""

    @property
    def truth(self) -> str:
        """What the stages are compared with, for the report."""

    @property
    def dims(self) -> Mapping[str, tuple[int, int, int]]:
        """The (min, opt, max) it brings along for its symbolic dimensions."""

    def parts(self) -> dict[str, str]:
        """Fingerprints of its content."""

    def exported(self) -> Exported:
        """Exports it, or reads it."""

    def recalled(self, exported: Exported) -> Exported:
        """Returns the graph of an earlier build as `exported` would have, without exporting again."""

    def refuse_sizes(
        self, exported: Exported, dims: Mapping[str, tuple[int, int, int]], defaulted: Collection[str] = ()
    ) -> None:
        """Runs it at the corners of the profile. Raises UsageError where it does not take such a size."""

    def feeds(
        self, exported: Exported, profile: Mapping[str, tuple[int, int, int]]
    ) -> "Iterable[tuple[str, Mapping[str, Any]]]":
        """Returns (name, arrays by graph input) of the parity cases, at the dtype."""

    def judge(
        self,
        exported: Exported,
        stages: Mapping[str, Any],
        profile: Mapping[str, tuple[int, int, int]],
        masked_rows: str,
    ) -> "ParityReport":
        """Runs every stage on the parity cases; `masked_rows` is what fusing left rows without keys to give."""

    def draw(self, exported: Exported, sizes: Mapping[str, int]) -> "Mapping[str, npt.NDArray[np.generic]]":
        """Returns inputs of the graph by name, at these sizes of its dimensions; some keys hidden where it can."""

    def whole(self, exported: Exported) -> "Truth":
        """Returns what one forward over whole sequences gives, which a decode loop is held to."""


def load(spec: Spec) -> Subject:
    """Returns the subject of a resolved spec.

    Raises:
        UsageError: The source does not exist, does not load or holds NaN weights.
    """
    if spec.is_onnx:
        from export.onnx_subject import OnnxSubject

        return OnnxSubject(Path(spec.source), str(spec.dtype), spec.seed)
    return ModuleSubject(spec)


def recalled(path: Path, inputs: tuple[Tensor, ...], outputs: tuple[str, ...], opset: int, exporter: str) -> Exported:
    """Returns the exported graph of an earlier build, read from its folder; a damaged file gives an empty graph."""
    import onnx_ir as ir

    from export import model_file

    try:
        model = model_file.load(path)
    except ToolkitError:
        model = ir.Model(ir.Graph((), (), nodes=()), ir_version=10)
    return Exported(model, inputs, outputs, opset, exporter)


class ModuleSubject:
    """A PyTorch module: a form or what a factory returned."""

    kind = "pytorch"

    def __init__(self, spec: Spec) -> None:
        """Loads the module; a factory's random weights are drawn from the spec's seed."""
        from export.capture import load_source

        self._spec = spec
        self.source: Source = load_source(spec.source, seed=spec.seed)
        self._cases: list[ParityCase] | None = None

    @property
    def truth(self) -> str:
        """What the stages are compared with."""
        return f"{self._spec.name} in PyTorch, float64 on the CPU, weights rounded to {self._spec.dtype} first"

    @property
    def dims(self) -> Mapping[str, tuple[int, int, int]]:
        """The form's or the factory's own ranges."""
        dims: Mapping[str, tuple[int, int, int]] = self.source.dims
        return dims

    def parts(self) -> dict[str, str]:
        """Fingerprints of the code, weights and inputs; a form's are those of the toolkit."""
        from export import digest

        return {} if self.source.form is not None else digest.of_module(self.source)

    def exported(self) -> Exported:
        """Exports the module and runs what was written."""
        from export.capture import capture

        spec = self._spec
        captured = capture(self.source, dtype=str(spec.dtype), exporter=spec.exporter, opset=spec.opset)
        return Exported(
            captured.model,
            tuple(Tensor(t.name, t.dtype, tuple(t.shape)) for t in captured.inputs),
            captured.outputs,
            captured.opset,
            captured.exporter,
            captured.warnings,  # those of the source are among them
            captured,
        )

    def recalled(self, exported: Exported) -> Exported:
        """Returns the graph of an earlier build, able to take this module's inputs."""
        from export.capture import Captured, TensorSpec

        inputs = tuple(TensorSpec(t.name, t.dtype, t.shape) for t in exported.inputs)
        names = tuple(self.source.inputs)
        captured = Captured(exported.model, inputs, exported.outputs, exported.opset, exported.exporter, (), names)
        return replace(exported, raw=captured)

    def refuse_sizes(
        self, exported: Exported, dims: Mapping[str, tuple[int, int, int]], defaulted: Collection[str] = ()
    ) -> None:
        """Runs the module at the corners of the profile: a length beyond its buffers shows here, not in an engine.

        Raises:
            UsageError: The module does not run at such a size; the message carries its own.
        """
        import torch

        from export.model.form import Case

        for corner in (0, 2):
            sizes = {name: sizes[corner] for name, sizes in dims.items()}
            inputs = self.source.draw(Case("profile", sizes))
            try:
                with torch.no_grad():
                    self.source.module(**inputs)
            except ToolkitError as error:
                hint = of_defaults(dims, defaulted)
                raise UsageError(
                    f"{self._spec.name} does not run at {_listed(sizes)}: {error}{f' {hint}' if hint else ''}"
                ) from error
            except Exception as error:  # whatever the user's forward raises
                raise UsageError(
                    f"{self._spec.name} does not run at {_listed(sizes)}, which the profile allows: "
                    f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}. "
                    f"{of_defaults(dims, defaulted) or 'Give --shapes that the module takes.'}"
                ) from error

    def judge(
        self,
        exported: Exported,
        stages: Mapping[str, Any],
        profile: Mapping[str, tuple[int, int, int]],
        masked_rows: str,
    ) -> "ParityReport":
        """Runs PyTorch at the dtype and every stage against the module in float64, at sizes of the profile."""
        from export.parity import check_stages

        cases, dtype = self._grid(profile), str(self._spec.dtype)
        return check_stages(self.source, exported.raw, stages, dtype=dtype, masked_rows=masked_rows, cases=cases)

    def feeds(
        self, exported: Exported, profile: Mapping[str, tuple[int, int, int]]
    ) -> "Iterable[tuple[str, Mapping[str, Any]]]":
        """Returns the parity cases as the graph takes them."""
        from export.capture.precision import DTYPES
        from export.parity import arrays

        to = DTYPES[str(self._spec.dtype)]
        return [(case.name, exported.raw.flatten(arrays.cast(case.inputs, to))) for case in self._grid(profile)]

    def _grid(self, profile: Mapping[str, tuple[int, int, int]]) -> "list[ParityCase]":
        """Returns the parity cases at sizes of the profile, made once: some are searched for."""
        from export.parity.grid import source_cases

        if self._cases is None:
            source = replace(self.source, dims=dict(profile))
            if source.form is not None:
                source = replace(source, form=replace(source.form, dims=dict(profile)))
            self._cases = source_cases(source, str(self._spec.dtype))
        return self._cases

    def draw(self, exported: Exported, sizes: Mapping[str, int]) -> "Mapping[str, npt.NDArray[np.generic]]":
        """Returns inputs as the form or the factory's example has them, their masks hiding keys as padding does."""
        from export.capture import tree
        from export.model.form import Case
        from export.parity import resize

        form = self.source.form
        padding = "right" if form is not None and "right" in form.padding else "none"
        drawn = self.source.draw(Case("drawn", dict(sizes), padding, seed=self._spec.seed))
        if form is None:
            drawn = resize.padded(drawn, dict(tree.leaves(self.source.inputs)), "right")
        feeds: Mapping[str, npt.NDArray[np.generic]] = exported.raw.flatten(drawn)
        return feeds

    def whole(self, exported: Exported) -> "Truth":
        """Returns the module in float64."""
        from export.decode.truth import ModuleTruth

        return ModuleTruth(self.source, exported.raw, str(self._spec.dtype), self._spec.seed)


def of_defaults(dims: Mapping[str, tuple[int, int, int]], defaulted: Collection[str]) -> str:
    """Returns which sizes nobody gave and how to give them; nothing where all were given."""
    given = [f"{name}={':'.join(map(str, dims[name]))}" for name in dims if name in defaulted]
    if not given:
        return ""
    return (
        f"Nobody gave sizes for {', '.join(defaulted)}, so the defaults min:opt:max {', '.join(given)} were tried. "
        f"Give those that the model takes, as in --shapes {','.join(f'{name}=1:4:8' for name in defaulted)}."
    )


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in sizes.items()) or "its fixed sizes"
