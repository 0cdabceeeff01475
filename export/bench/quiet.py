"""Keeps what other people's tools print, log and warn out of the tables."""

import contextlib
import gc
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lets nothing through of what is printed, logged or warned inside."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
            gc.collect()  # the folders that a tool leaves to the collector warn when they go
    finally:
        logging.disable(before)
