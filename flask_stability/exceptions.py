"""The exceptions that flask_stability itself raises, all children of `StabilityError`."""

from __future__ import annotations

from collections.abc import Sequence


class StabilityError(Exception):
    """Base class of everything this package raises on its own account."""


class ConfigError(StabilityError, RuntimeError):
    """Settings that cannot be used.

    A RuntimeError, since gunicorn ends with one line and no traceback for one that a preloaded app raises.

    :param problems: one line per bad value, each naming key, value and remedy.
    """

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class DatabaseUnavailable(StabilityError):
    """The database cannot be had now; answered with 503 and ``Retry-After`` if a view lets it through.

    :param retry_after: seconds after which asking again makes sense.
    """

    def __init__(self, message: str = "", *, retry_after: float = 1.0) -> None:
        super().__init__(message or self.__class__.__doc__)
        self.retry_after = retry_after


class PoolTimeout(DatabaseUnavailable):
    """No connection became free within the time that the caller had."""


class PoolClosed(DatabaseUnavailable):
    """The pool was closed: the process is shutting down."""


class TooManyRequests(DatabaseUnavailable):
    """The threads allowed inside a slow database are all taken; the rest stay free for other requests."""


class CircuitOpen(DatabaseUnavailable):
    """The database did not answer lately; connecting is suspended until a probe succeeds."""


class DeadlineExceeded(DatabaseUnavailable):
    """The request's deadline ended a call to the database."""


class CommitUnknown(StabilityError):
    """The link was lost during COMMIT: the transaction may or may not be stored.

    It is never run again by this package; the caller has to look.
    """
