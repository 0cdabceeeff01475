"""The step of a build that measures its pictures: what it needs, and that its failing fails no build."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from export import progress
from export.errors import ToolkitError
from export.pictures.measured import NAME, pictures, sizes
from export.report import files

if TYPE_CHECKING:
    from export.fuse import FuseResult
    from export.subject import Exported, Subject

_log = logging.getLogger(__name__)


def write(
    folder: Path,
    loaded: "Subject",
    exported: "Exported",
    fused: "FuseResult",
    profile: Mapping[str, tuple[int, int, int]],
    dtype: str,
) -> None:
    """Writes pictures.json into the folder that is being filled; without inputs the drawings are without numbers."""
    progress.step("pictures", 0, 1)
    dims = sizes(profile)
    try:
        feeds = loaded.draw(exported, dims)
    except ToolkitError as error:
        _log.warning("No pictures: no inputs at %s: %s", dict(dims), error)
        feeds = {}
    files.write_json(folder / NAME, pictures(exported.model, fused.model, fused.attentions, feeds, dims, dtype))
    progress.step("pictures", 1, 1)
