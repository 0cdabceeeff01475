"""Judging answers against float64 with derived error budgets; each name is imported when it is first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.parity.attention import AttentionTruth, attention_truth
    from export.parity.case import ParityCase
    from export.parity.grid import form_cases, source_cases
    from export.parity.harness import check, check_stages
    from export.parity.result import NotRun, ParityReport, ParityRow
    from export.parity.runresults import Recording

__all__ = [
    "AttentionTruth",
    "NotRun",
    "ParityCase",
    "ParityReport",
    "ParityRow",
    "Recording",
    "attention_truth",
    "check",
    "check_stages",
    "form_cases",
    "source_cases",
]

_PLACES = {
    "AttentionTruth": "attention",
    "NotRun": "result",
    "ParityCase": "case",
    "ParityReport": "result",
    "ParityRow": "result",
    "Recording": "runresults",
    "attention_truth": "attention",
    "check": "harness",
    "check_stages": "harness",
    "form_cases": "grid",
    "source_cases": "grid",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"export.parity.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'export.parity' has no attribute {name!r}; its names are {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
