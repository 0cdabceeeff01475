"""Times contenders in turn on an NVIDIA GPU: each is one CUDA graph, whose replays are timed by events.

A graph holds several calls, so that what one launch costs is not timed, and each call takes the next of several sets of
inputs, so that none is found in the cache. NOT RUN so far: it needs a GPU.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from export.bench.clock import Times

_log = logging.getLogger(__name__)
CALLS, REPLAYS, WARMUP = 10, 30, 3
INPUT_BYTES = 240 * 2**20
"""The sets of inputs together are larger than the cache of any GPU of today."""
LEAST_SETS = 4


def sets_needed(bytes_of_one: int) -> int:
    """Returns how many sets of inputs there must be for none to be in the cache when it is read again."""
    return max(LEAST_SETS, -(-INPUT_BYTES // max(bytes_of_one, 1)))


def interleaved(calls: Mapping[str, Callable[[], Any]], replays: int = REPLAYS) -> dict[str, Times]:
    """Returns the times of each call; one replay of its graph is one round, and the order of a round turns.

    A call that cannot be captured is logged and has no times.

    Args:
        calls: What to time, by name: each launches its work on the current stream and takes the next set of inputs.
        replays: How often each graph is replayed.
    """
    import torch

    cuda: Any = torch.cuda  # untyped
    graphs = {}
    for name, call in calls.items():
        try:
            graphs[name] = captured(call)
        except RuntimeError as error:  # CUDA's and PyTorch's: a call that waits for the GPU cannot be part of a graph
            _log.warning("%s is not timed: no CUDA graph holds it: %s", name, str(error).strip().splitlines()[0])
    times, names = {name: Times() for name in graphs}, list(graphs)
    for done in range(replays):
        turn = done % len(names)
        for name in (*names[turn:], *names[:turn]):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graphs[name].replay()
            end.record()
            end.synchronize()
            times[name].wall.append([start.elapsed_time(end) / 1000 / CALLS])
    return times


def captured(call: Callable[[], Any]) -> Any:
    """Returns a torch.cuda.CUDAGraph of several calls, warmed up beside the main stream as capturing asks for."""
    import torch

    cuda: Any = torch.cuda  # untyped
    side = cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(CALLS):
            call()
    return graph
