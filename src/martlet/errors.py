"""Every error that Martlet raises on purpose.

Each class knows the process exit code and the HTTP status that go with it, so that the
command line and the server need no table of their own. A message says what happened, what
was found, what the limit is, and what to do next, in one line.

    MartletError                    1 / 500
      UsageError                    2 / 400   the call is wrong: a flag, an argument, a text
        ContextLengthError          2 / 400   the prompt does not fit into the model's context
      ModelNotFoundError            3 / 404   no model of that name or at that path
      CapacityError                 4 / 507   memory does not suffice
      DownloadError                 5 / 502   a download failed or did not verify
        RepositoryChangedError      5 / 502   the hub's repository changed while it was fetched
      DiskFullError                 5 / 507   a file could not be written for want of space
      ModelFileError                6 / 500   a model file is damaged, hostile or not supported
        VocabularyError             6 / 500   tokenizer and weights do not belong together
      ServerUnreachableError        7 / 502   no server answered
      OverloadedError               1 / 429   the server's queue is full
      UnavailableError              1 / 503   the model is loading, restarting, or shutting down
      DeviceError                   1 / 500   the graphics card or its driver refused a call
      KernelCompileError            1 / 500   a GPU kernel could not be compiled for this card
"""

__all__ = [
    "CapacityError",
    "ContextLengthError",
    "DeviceError",
    "DiskFullError",
    "DownloadError",
    "KernelCompileError",
    "MartletError",
    "ModelFileError",
    "ModelNotFoundError",
    "OverloadedError",
    "RepositoryChangedError",
    "ServerUnreachableError",
    "UnavailableError",
    "UsageError",
    "VocabularyError",
]


class MartletError(Exception):
    """Root of all errors raised on purpose; its message is meant for the user."""

    exit_code = 1
    http_status = 500


class UsageError(MartletError):
    """A flag, an argument or a text is not valid."""

    exit_code = 2
    http_status = 400


class ContextLengthError(UsageError):
    """The prompt (plus what was asked for) is longer than the model's context."""


class ModelNotFoundError(MartletError):
    """No bundled model of that name and no model folder at that path."""

    exit_code = 3
    http_status = 404


class CapacityError(MartletError):
    """The plan does not fit into the memory that is there."""

    exit_code = 4
    http_status = 507


class DownloadError(MartletError):
    """A file could not be fetched, or what arrived does not verify.

    Attributes:
        may_pass: whether the same request may succeed a little later.
        retry_after_seconds: when to try again, where the server said so.
    """

    exit_code = 5
    http_status = 502

    def __init__(
        self, message: str, *, may_pass: bool = False, retry_after_seconds: float | None = None
    ) -> None:
        super().__init__(message)
        self.may_pass = may_pass
        self.retry_after_seconds = retry_after_seconds


class RepositoryChangedError(DownloadError):
    """The hub now has other bytes than those that its list of files told of."""


class DiskFullError(MartletError):
    """There is no room for the files to be written."""

    exit_code = 5
    http_status = 507


class ModelFileError(MartletError):
    """A model file is truncated, malformed, hostile, or of a kind that is not supported."""

    exit_code = 6


class VocabularyError(ModelFileError):
    """The vocabulary does not belong to the weights."""


class ServerUnreachableError(MartletError):
    """No Martlet server answers at that address."""

    exit_code = 7
    http_status = 502


class OverloadedError(MartletError):
    """The queue of the server is full.

    Attributes:
        retry_after_seconds: when to try again, from the speed that was measured.
    """

    http_status = 429

    def __init__(self, message: str, retry_after_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnavailableError(MartletError):
    """The model cannot answer now: it is loading, being restarted, or the server shuts down.

    Attributes:
        retry_after_seconds: when to try again; None where that would not help.
    """

    http_status = 503

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class DeviceError(MartletError):
    """The graphics card or its driver refused a call, or is not there."""


class KernelCompileError(MartletError):
    """A GPU kernel could not be compiled.

    Attributes:
        log: What the compiler said, all of it; empty where no compiler ran.
        options: What it was called with.
    """

    def __init__(self, message: str, log: str = "", options: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.log = log
        self.options = options
        if log:
            self.add_note(log)  # tracebacks show it
