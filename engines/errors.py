"""The errors a user can meet, from the layers below `export`; `export.errors` draws the whole tree.

Every message says what happened, why, and what to do. `exit_code` is what the command line returns.
"""


class ToolkitError(Exception):
    """Base of every error this toolkit raises on purpose."""

    exit_code = 1


class UsageError(ToolkitError):
    """The request or its input cannot be used as given: a bad flag, file, shape or model."""

    exit_code = 2


class CacheFullError(UsageError):
    """The key/value cache has no room for the tokens that were given; nothing was run."""


class RaggedError(UsageError):
    """Rows of different lengths were given to a graph that cannot hide padding."""


class BackendMissingError(ToolkitError):
    """A runtime, provider, optional package or GPU that was asked for is not usable here."""

    exit_code = 3


class EngineBuildError(ToolkitError):
    """TensorRT or TensorRT-RTX could not build the engine."""

    exit_code = 4
