"""Lets the random programs use what the tests of the fuser share: text graphs and goldens."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "fuse"))
