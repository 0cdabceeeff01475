"""NVIDIA architectures by compute capability: what users write, which ones a builder knows, which dtypes they lack."""

from collections.abc import Iterable

from engines.errors import BackendMissingError, UsageError
from engines.gpus import gpus
from engines.vendor import Vendor

NAMES = {
    75: "Turing",
    80: "Ampere, data centre",
    86: "Ampere",
    87: "Ampere, embedded",
    89: "Ada",
    90: "Hopper",
    100: "Blackwell, data centre",
    103: "Blackwell Ultra, data centre",
    120: "Blackwell",
    121: "Blackwell, embedded",
}

FIRST_SM = {"bfloat16": 80}
"""First architecture whose tensor cores take the dtype; TensorRT-RTX refuses older ones ("HW-specific data types")."""


def parse(text: str) -> tuple[int, ...]:
    """Returns the architectures a user wrote, e.g. (89, 120) for "89,120", "sm89,sm120" or "8.9,12.0".

    Raises:
        UsageError: A part is no compute capability.
    """
    found = []
    for part in text.split(","):
        word = part.strip().lower().removeprefix("sm").lstrip("_")
        major, dot, minor = word.partition(".")
        digits = f"{major}{minor}" if dot and len(minor) == 1 else word
        if not digits.isascii() or not digits.isdecimal() or not 10 <= int(digits) <= 999:
            raise UsageError(f"{part.strip()!r} is no compute capability: write --sm 89,120 (or 8.9,12.0).")
        found.append(int(digits))
    return tuple(dict.fromkeys(found))


def require(vendor: Vendor, sm: int) -> None:
    """Refuses an architecture the vendor cannot compile for on this machine.

    Raises:
        UsageError: TensorRT-RTX does not know it, or TensorRT would compile for another GPU than was asked.
        BackendMissingError: TensorRT compiles for the GPU it runs on, and there is none here.
    """
    if vendor.sms is not None:
        if sm not in vendor.sms:
            raise UsageError(
                f"{vendor.title} {vendor.version} does not compile for SM {sm}{_called(sm)}; it knows "
                f"{', '.join(f'{known}{_called(known)}' for known in vendor.sms)}."
            )
        return
    here = gpus()
    if not here.found:
        raise BackendMissingError(
            f"{vendor.title} compiles for the GPU it runs on: {here.reason}. Build with --target tensorrt-rtx, which "
            "needs no GPU, or run on a machine with an NVIDIA GPU and its driver."
        )
    if here.found[0].sm != sm:
        raise UsageError(f"{vendor.title} compiles for the GPU it runs on, SM {here.found[0].sm}, not for SM {sm}.")


def refuse_dtypes(sm: int, dtypes: Iterable[str]) -> None:
    """Refuses dtypes that the architecture has no arithmetic for, before a builder says so in its own words.

    Args:
        sm: Architecture, e.g. 75.
        dtypes: numpy or ml_dtypes names of the tensors in the graph.

    Raises:
        UsageError: One of them does not exist there.
    """
    for dtype in sorted(set(dtypes)):
        first = FIRST_SM.get(dtype, 0)
        if sm < first:
            raise UsageError(
                f"The model holds {dtype} tensors and SM {sm}{_called(sm)} has no {dtype} arithmetic; it starts with "
                f"SM {first}. Export with --dtype fp16, or leave SM {sm} out."
            )


def _called(sm: int) -> str:
    return f" ({NAMES[sm]})" if sm in NAMES else ""
