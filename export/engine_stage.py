"""Building the engines of a plan, one architecture each, side by side on as many cores as there are."""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from engines.build import Progress
from engines.cached import Obtained, obtain
from engines.errors import ToolkitError
from engines.profiles import Profile
from engines.store import Store
from export import progress as watch
from export.plan import Plan

_log = logging.getLogger(__name__)


class _CancelledError(ToolkitError):
    """Another architecture failed, or the user stopped the build; never seen outside."""


@dataclass(frozen=True)
class Supply:
    """Where engines may come from.

    Attributes:
        store: The engine cache; None builds without one.
        fresh: Whether each engine is built even if the cache has it.
    """

    store: Store | None = None
    fresh: bool = False


def build_engines(
    todo: Plan,
    model: Path,
    profile: Profile,
    folder: Path,
    supply: Supply = Supply(),
    stem: str = "model",
) -> tuple[Obtained, ...]:
    """Returns the engines of every architecture of the plan, written to `folder` as <stem>.<sm>.engine.

    Raises:
        UsageError: The vendor cannot take the model or the profile.
        EngineBuildError: A build failed; the others are stopped.
    """
    if todo.vendor is None:
        return ()
    stop = threading.Event()

    def one(sm: int) -> Obtained:
        def on_progress(progress: Progress) -> None:
            if stop.is_set():
                raise _CancelledError("stopped")
            watch.step(f"build SM {sm}", progress.done, progress.steps, progress.phase)

        try:
            return obtain(
                model,
                folder / f"{stem}.{sm}.engine",
                vendor=str(todo.spec.target),
                sm=sm,
                profile=profile,
                store=supply.store,
                label=todo.spec.name,
                fresh=supply.fresh,
                asked=todo.spec.flags(),
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
    real = [error for error in errors if not isinstance(error, _CancelledError)]
    if real:
        raise real[0]
    built = tuple(future.result() for future in futures)
    for obtained in built:
        _log_one(obtained, supply.store is not None)
    return built


def _log_one(got: Obtained, caching: bool) -> None:
    engine = got.engine
    if caching:
        _log.info("cache     SM %d: %s: %s", engine.sm, "hit" if got.hit else "miss", got.why)
    _log.info(
        "engine    SM %d: %.1f s%s, %d KiB, %d of %d attentions in a fused kernel",
        engine.sm,
        engine.seconds,
        " when it was built" if got.hit else "",
        engine.size // 1024,
        sum(choice.fused is True for choice in engine.attentions.values()),
        len(engine.attentions),
    )
