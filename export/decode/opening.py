"""A decode loop from what `build --decode` wrote."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from engines import engine_json, vendor
from engines.decoding import Decoding
from engines.engine_runner import EngineRunner
from engines.errors import UsageError
from engines.generator import Generator, Resident
from engines.gpus import gpus
from engines.ort_runner import OrtRunner
from export.ort_view import open_graph


def generator(folder: str | os.PathLike[str], provider: str = "cpu") -> Generator:
    """Returns a loop over the graphs of a folder that was built with `--decode`.

    Args:
        folder: The artifact folder.
        provider: "cpu"; "cuda", for a folder built with --target ort; "tensorrt-rtx" or "tensorrt", for its engines of
            this GPU's architecture.

    Raises:
        UsageError: The folder has no decode graphs, or none for that provider.
        BackendMissingError: The provider is not usable here.
    """
    place = Path(folder)
    engine_json.read_folder(place)  # refuses what is not ours, with its own words
    content = json.loads((place / engine_json.NAME).read_text(encoding="utf-8"))
    told = content.get(engine_json.DECODE)
    if told is None:
        raise UsageError(f"{place} was built without a cache; build it again with --decode.")
    decoding, graphs = Decoding.from_dict(told), told["graphs"]
    if provider in vendor.NAMES:
        if content["target"] != provider:
            raise UsageError(f"{place} was built for {content['target']}; build it with --target {provider}.")
        here = gpus().found
        sms = sorted({item["sm"] for item in told["engines"]})
        sm = here[0].sm if here and here[0].sm in sms else sms[0]  # the runner says what is missing
        return engine_loop(decoding, place, sm)()
    if provider != "cpu" and decoding.kind == "static":
        raise UsageError(f"The graphs of {place} are for {content['target']}; build with --target ort for {provider}.")

    def opened(name: str) -> Resident:
        return open_graph(place / name) if provider == "cpu" else OrtRunner(place / name, provider)

    runners = {name: opened(name) for name in dict.fromkeys(graphs.values())}
    return Generator(runners[graphs["prefill"]], runners[graphs["step"]], decoding)


def engine_loop(decoding: Decoding, folder: Path, sm: int) -> Callable[[], Generator]:
    """Returns what makes loops over the engines of one architecture, loaded once.

    Raises:
        UsageError, BackendMissingError: As of `EngineRunner`.
    """
    prefill, step = (EngineRunner(folder / f"{name}.{sm}.engine") for name in ("prefill", "step"))
    return lambda: Generator(prefill, step, decoding)
