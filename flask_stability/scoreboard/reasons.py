"""Why a worker was replaced or ended: one enum from the decision to the log, the shared memory and the command line."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """Why a worker was replaced or ended. `NONE` is false, every other reason is true.

    The value is the name in logs, metrics and ``/health``. The order of the members is the code in shared memory: add
    new ones at the end.
    """

    NONE = "none"
    ASKED = "asked"  #: by an operator, or a signal from outside
    MEMORY = "memory"
    MEMORY_HARD = "memory_hard"
    MEMORY_GROWTH = "memory_growth"
    MEMORY_PRESSURE = "memory_pressure"
    DEADLINE = "deadline"
    STUCK = "stuck"
    CRASH_SIGNAL = "crash_signal"
    OUT_OF_MEMORY = "out_of_memory"
    BOOT_FAILURE = "boot_failure"
    TIMEOUT = "timeout"
    EXIT_CODE = "exit_code"
    RELOAD = "reload"
    SCALE = "scale"
    SHUTDOWN = "shutdown"
    MAX_REQUESTS = "max_requests"
    FROZEN = "frozen"
    UNKNOWN = "unknown"
    OPEN_FILES = "open_files"
    LEAKED_CONNECTIONS = "leaked_connections"

    def __bool__(self) -> bool:
        return self is not Reason.NONE

    @property
    def code(self) -> int:
        """The word that stands for it in shared memory."""
        return _CODES[self]

    @classmethod
    def of(cls, code: int) -> Reason:
        """Return the reason that a word stands for; `UNKNOWN` for a word that no reason has."""
        return REASONS[code] if 0 <= code < len(REASONS) else cls.UNKNOWN


REASONS = tuple(Reason)
_CODES = {reason: code for code, reason in enumerate(REASONS)}
#: Failures of the worker itself; only they count towards the restart limit.
CRASHES = frozenset({Reason.CRASH_SIGNAL, Reason.OUT_OF_MEMORY, Reason.BOOT_FAILURE, Reason.TIMEOUT, Reason.EXIT_CODE,
                     Reason.FROZEN, Reason.UNKNOWN})
