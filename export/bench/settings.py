"""How a CPU run is set up before anything that computes is imported: threads that wait sleep, and do not spin."""

import os
import sys

_asked: list[bool] = []
"""Whether the first call came in time; the later ones change nothing."""

_QUIET = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


def sleep_while_waiting(threads: int) -> bool:
    """Tells the threads of OpenMP, which PyTorch computes with, to sleep while they wait.

    Args:
        threads: How many it may start.

    Returns:
        Whether that was in time: OpenMP reads it once, when PyTorch is imported.
    """
    os.environ.update(_QUIET, OMP_NUM_THREADS=str(threads))
    _asked.append("torch" not in sys.modules)
    return _asked[0]
