"""Building the engines of a plan, one architecture each, side by side on as many cores as there are."""

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.build import BuiltEngine, Progress, build_engine
from engines.errors import ToolkitError
from engines.profiles import Profile
from export.plan import Plan

_log = logging.getLogger(__name__)


class _CancelledError(ToolkitError):
    """Another architecture failed, or the user stopped the build; never seen outside."""


def build_engines(todo: Plan, model: Path, profile: Profile, folder: Path) -> tuple[BuiltEngine, ...]:
    """Returns the engines of every architecture of the plan, written to `folder` as model.<sm>.engine.

    Raises:
        UsageError: The vendor cannot take the model or the profile.
        EngineBuildError: A build failed; the others are stopped.
    """
    if todo.vendor is None:
        return ()
    stop = threading.Event()
    show = _bar()

    def one(sm: int) -> BuiltEngine:
        def on_progress(progress: Progress) -> None:
            if stop.is_set():
                raise _CancelledError("stopped")
            show(f"engine    SM {sm}: {progress.phase} {progress.done}/{progress.steps}")

        try:
            return build_engine(
                model,
                folder / f"model.{sm}.engine",
                vendor=str(todo.spec.target),
                sm=sm,
                profile=profile,
                on_progress=on_progress,
            )
        except BaseException:
            stop.set()
            raise

    sms = todo.spec.sm
    with ThreadPoolExecutor(max_workers=min(len(sms), os.cpu_count() or 1)) as pool:
        futures = [pool.submit(one, sm) for sm in sms]
        try:
            errors = [error for future in futures if (error := future.exception())]
        except BaseException:  # Ctrl-C: the workers see it at their next progress report
            stop.set()
            raise
        finally:
            show("")
    real = [error for error in errors if not isinstance(error, _CancelledError)]
    if real:
        raise real[0]
    built = tuple(future.result() for future in futures)
    for engine in built:
        fused = sum(choice.fused is True for choice in engine.attentions.values())
        _log.info(
            "engine    SM %d: %.1f s, %d KiB, %d of %d attentions in a fused kernel",
            engine.sm,
            engine.seconds,
            engine.size // 1024,
            fused,
            len(engine.attentions),
        )
    return built


def _bar() -> Callable[[str], None]:
    """Returns a function that keeps one line of stderr up to date, or does nothing where stderr is no terminal."""
    if not sys.stderr.isatty() or not _log.isEnabledFor(logging.INFO):
        return lambda text: None
    lock = threading.Lock()

    def show(text: str) -> None:
        with lock:
            sys.stderr.write(f"\r\x1b[2K{text[:100]}")
            sys.stderr.flush()

    return show
