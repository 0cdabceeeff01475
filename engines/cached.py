"""An engine from the cache where it holds one that is the same in everything, else from the builder."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from engines import build, engine_key, flags, graph, screen
from engines.build import BuiltEngine, Progress
from engines.errors import ToolkitError
from engines.flags import Flags
from engines.gpus import gpus
from engines.profiles import Profile
from engines.store import Damaged, Entry, Store
from engines.vendor import load

_log = logging.getLogger(__name__)
_MOVED = 3  # an engine that differs in more than so many parts is no near miss


@dataclass(frozen=True)
class Obtained:
    """An engine and where it came from.

    Attributes:
        engine: The engine.
        hit: Whether it came from the cache.
        why: Why, one sentence without its full stop.
    """

    engine: BuiltEngine
    hit: bool
    why: str


def obtain(
    onnx: Path,
    out: Path,
    *,
    vendor: str,
    sm: int,
    profile: Profile,
    store: Store | None,
    label: str = "",
    fresh: bool = False,
    asked: Flags = Flags(),  # noqa: B008 (frozen)
    on_progress: Callable[[Progress], None] | None = None,
) -> Obtained:
    """Returns the engine of an ONNX file at `out`, built only if the cache has none that is the same.

    Args:
        onnx: The model, as for `engines.build.build_engine`; so are the arguments down to `profile`.
        out: The engine file to write.
        vendor: Who builds.
        sm: Architecture.
        profile: Shapes to build for.
        store: The cache; None builds without one.
        label: What the engine is built from, in words, for listings.
        fresh: Build even if the cache has it, and replace it there.
        asked: What is asked of the builder beyond the graph.
        on_progress: Called as the build goes on, or while another process builds this engine.

    Raises:
        UsageError, BackendMissingError, EngineBuildError: As `build_engine`. What is wrong with the cache is a warning.
    """

    def make() -> BuiltEngine:
        return build.build_engine(
            onnx, out, vendor=vendor, sm=sm, profile=profile, asked=asked, on_progress=on_progress
        )

    if store is None:
        return Obtained(make(), False, "no cache was asked for")
    here = load(vendor)
    flags.refuse(asked, here)
    facts = graph.read(onnx)
    screen.check(facts, here, sm, profile)
    seen = gpus().found
    gpu = seen[0].name if here.sms is None and seen else None
    parts = engine_key.parts(onnx, facts, vendor=here, sm=sm, profile=profile, asked=asked, gpu=gpu)
    key = engine_key.key(parts)

    def waiting() -> None:
        if on_progress:
            on_progress(Progress("another process is building this engine", 0, 1))

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(store.locked(key, waiting))
        except OSError as error:
            _log.warning("The engine cache %s cannot be used: %s.", store.root, error.strerror)
            return Obtained(make(), False, "the cache cannot be written")
        why = _miss(store, key, parts, label) if not fresh else "a build from scratch was asked for"
        try:
            found = None if fresh else store.read(key)
            if found:
                entry, told = found
                store.fetch(entry, out)
                log = [(str(severity), str(text)) for severity, text in told["log"]]
                engine = build.describe(out, facts, profile, asked, told["built"], log)
                return Obtained(engine, True, f"entry {key[:12]}, every part agrees and its sha256 is right")
        except Damaged as error:
            why = f"entry {key[:12]} is there, but {error}"
            store.discard(key)
        built = make()
        try:
            store.put(key, parts, label, built)
        except (OSError, ToolkitError) as error:
            _log.warning("The engine was not put into the cache: %s", error)
    return Obtained(built, False, why)


def _miss(store: Store, key: str, parts: engine_key.Parts, label: str) -> str:
    """Returns why no entry is the one, by the entry that is most like it."""
    near = [(engine_key.difference(entry.parts, parts), entry) for entry in store.entries() if entry.key != key]
    near = [(moved, entry) for moved, entry in near if _alike(entry, parts, label) and len(moved) <= _MOVED]
    if not near:
        return f"nothing like it is in {store.root}"
    moved, entry = min(near, key=lambda pair: (len(pair[0]), -pair[1].used))
    return f"the nearest entry, {entry.key[:12]}, differs: {'; '.join(moved)}"


def _alike(entry: Entry, parts: engine_key.Parts, label: str) -> bool:
    return entry.parts.get("graph") == parts["graph"] or bool(label and entry.label == label)
