"""The JSON Schemas of what an artifact folder says about itself: the contract that its views are made of."""

import json
from importlib.resources import files
from typing import Any


def schema(name: str) -> dict[str, Any]:
    """Returns the schema of a file by its name without the ending, e.g. "report"."""
    content: dict[str, Any] = json.loads(files(__name__).joinpath(f"{name}.schema.json").read_text(encoding="utf-8"))
    return content
