"""What will be done on this machine: every choice the spec left open, made, and what cannot work refused first.

All of this is known before anything slow starts: a missing backend or an unknown GPU architecture costs a second, not
an export.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from engines import compute_capability, environment, flags, vendor
from engines.gpus import gpus
from engines.vendor import Vendor
from export.errors import UsageError
from export.spec import Spec

STORAGE = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""numpy or ml_dtypes name of the tensors of each dtype."""


@dataclass(frozen=True)
class Plan:
    """A spec with nothing left open.

    Attributes:
        spec: The resolved spec: target, dtype and sm are set.
        vendor: The engine builder, loaded; None for targets without engines.
        gpus: Names of the GPUs here, which decide what can be run.
    """

    spec: Spec
    vendor: Vendor | None
    gpus: tuple[str, ...]


def make(spec: Spec) -> Plan:
    """Returns the plan for a spec on this machine.

    Raises:
        UsageError: The spec contradicts itself, the target or the source.
        BackendMissingError: The target is not installed here, or needs a GPU.
    """
    target = spec.target or environment.default_target()
    asked = spec.flags()
    dtype = _onnx_dtype(spec) if spec.is_onnx else spec.dtype or "fp16"
    timings = str(Path(spec.timing_cache).absolute()) if spec.timing_cache else None
    spec = replace(spec, source=_absolute(spec.source), timing_cache=timings)
    names = tuple(f"{gpu.name} (SM {gpu.sm})" for gpu in gpus().found)
    if target not in vendor.NAMES:
        if spec.sm:
            raise UsageError(f"--sm {','.join(map(str, spec.sm))} needs engines, and --target {target} builds none.")
        for name in asked.as_dict():
            raise UsageError(f"--{name.replace('_', '-')} is for engines, and --target {target} builds none.")
        if spec.further_profiles:
            raise UsageError(f"--shapes given again is for engines, and --target {target} builds none; give it once.")
        return Plan(replace(spec, target=target, dtype=dtype), None, names)
    loaded = vendor.load(target)
    flags.refuse(asked, loaded)
    sms = spec.sm or environment.default_sms(target)
    if not sms:
        raise UsageError("No GPU is here to take the architecture from; name one, as in --sm 89.")
    for sm in sms:
        compute_capability.require(loaded, sm)
        compute_capability.refuse_dtypes(sm, [STORAGE[dtype]])
    return Plan(replace(spec, target=target, dtype=dtype, sm=sms), loaded, names)


def _absolute(source: str) -> str:
    """Returns the source with a file's path made absolute, so that the folder can be checked from anywhere."""
    path, colon, factory = source.rpartition(":")
    if source.endswith(".onnx"):
        return str(Path(source).absolute())
    return f"{Path(path).absolute()}{colon}{factory}" if colon and path.endswith(".py") else source


def _onnx_dtype(spec: Spec) -> str:
    """An ONNX file computes in the precision it was exported in, and one in fp32 can be converted to fp16 or bf16."""
    from export import model_file
    from export.onnx_subject import dtype_of

    if spec.opset is not None:
        raise UsageError(f"--opset is for exporting PyTorch; {spec.source} is exported already. Leave --opset out.")
    held = dtype_of(model_file.load(spec.source))
    if spec.dtype not in (None, held) and held != "fp32":
        raise UsageError(
            f"{spec.source} computes in {held}, and --dtype {spec.dtype} was asked for. Only a file in fp32 is "
            f"converted, because no other holds more than it shows: export it in {spec.dtype}, or leave --dtype out."
        )
    return spec.dtype or held
