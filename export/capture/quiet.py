"""Keeps exporters from talking: stdout carries a command's result only, and their warnings are kept, not shown."""

import contextlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field

_LOG = logging.getLogger(__name__)
_CHATTY = ("torch", "onnxscript", "onnx_ir", "onnx", "onnx_shape_inference")


@dataclass
class Heard:
    """What was said while nobody listened.

    Attributes:
        caught: Python warnings.
        log: Records of the exporters' loggers, at WARNING and above.
        output: What was printed, by Python or by C++.
    """

    caught: list[warnings.WarningMessage] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    output: str = ""


@contextlib.contextmanager
def quiet() -> Iterator[Heard]:
    """Runs an exporter with its stdout, warnings and logs collected; at the end they go to our log at DEBUG.

    The file descriptor is redirected and not only sys.stdout, because the TorchScript exporter prints from C++.
    """
    heard = Heard()
    with _no_stdout(heard), _no_log(heard), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield heard
        finally:
            heard.caught.extend(caught)
    for warning in heard.caught:
        _LOG.debug("%s:%s: %s: %s", warning.filename, warning.lineno, warning.category.__name__, warning.message)
    for text in heard.log:
        _LOG.debug("%s", text)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Switches the fast path of nn.MultiheadAttention off: its operators are not ONNX's, and no graph has them."""
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what the user's code prints to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def _no_stdout(heard: Heard) -> Iterator[None]:
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as sink:
        sys.stdout.flush()
        try:
            saved: int | None = os.dup(1)
        except OSError:  # a process without a stdout has nothing to protect
            saved = None
        if saved is not None:
            os.dup2(sink.fileno(), 1)
        try:
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
        finally:
            sink.flush()
            if saved is not None:
                os.dup2(saved, 1)
                os.close(saved)
            sink.seek(0)
            heard.output = sink.read()


class _Collector(logging.Handler):
    def __init__(self, heard: Heard) -> None:
        super().__init__(logging.WARNING)
        self._heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self._heard.log.append(f"{record.name}: {record.getMessage()}")


@contextlib.contextmanager
def _no_log(heard: Heard) -> Iterator[None]:
    # PyTorch gives several of its loggers a handler of its own that writes to stderr; each is replaced for a while.
    collector = _Collector(heard)
    before = {}
    for name in {*_CHATTY, *logging.root.manager.loggerDict}:
        logger = logging.getLogger(name)
        if name in _CHATTY or (name.split(".")[0] in _CHATTY and logger.handlers):
            before[logger] = (logger.handlers, logger.propagate)
            logger.handlers, logger.propagate = [collector], False
    try:
        yield
    finally:
        for logger, (handlers, propagate) in before.items():
            logger.handlers, logger.propagate = handlers, propagate
