"""Runs jobs in processes, and says of each what came of it even where its process dies."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def outcomes(
    work: Callable[[Job], Outcome], jobs: Sequence[Job], workers: int, died: Callable[[Job], Outcome]
) -> Iterator[Outcome]:
    """Yields what came of each job, as they end.

    Args:
        work: A function at the top of a module; it returns its errors rather than raising them.
        jobs: What it is called with.
        workers: How many processes.
        died: What to yield for a job whose process was ended by a signal (a runtime may do that).
    """
    left = list(jobs)
    try:
        with ProcessPoolExecutor(workers) as pool:
            running = {pool.submit(work, job): job for job in jobs}
            for done in as_completed(running):
                made = done.result()
                left.remove(running[done])
                yield made
    except BrokenProcessPool:
        for job in left:  # each in a process of its own, so that it is known which one dies
            try:
                with ProcessPoolExecutor(1) as pool:
                    made = pool.submit(work, job).result()
            except BrokenProcessPool:
                made = died(job)
            yield made
