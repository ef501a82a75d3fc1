"""Read about other processes, and signal those that only a shared file names.

The writer of a scoreboard can put any process id in it, and a process id may be reused. So the number is read once, a
descriptor (pidfd) holds the process before it is examined, /proc decides, and the signal is sent with the rights of the
board's owner: root kills nothing for a user that the user could not kill.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_SLACK_NS = 200_000_000  # tolerance in comparing two clocks, one of which ticks


class Process(NamedTuple):
    """A process that exists and is not a zombie.

    :ivar state: its state letter; ``T`` is stopped.
    :ivar parent: process id of its parent.
    :ivar started: clock ticks from boot to its start; with the process id it identifies one process for good.
    """

    pid: int
    state: str
    parent: int
    started: int

    def is_older_than(self, moment_ns: int) -> bool:
        """Return whether it existed at a moment of the monotonic clock, as far as the clocks tell."""
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.started * _TICK_NS
        return age >= time.monotonic_ns() - moment_ns - _SLACK_NS

    def maps(self, path: str) -> bool | None:
        """Return whether it has mapped a file; None if this user may not know."""
        end = f" {os.path.realpath(path)}"
        try:
            with open(f"/proc/{self.pid}/maps", encoding="utf-8", errors="replace") as maps:
                return any(line.rstrip("\n").endswith(end) for line in maps)
        except FileNotFoundError:
            return False
        except OSError:
            return None if os.path.isdir(f"/proc/{self.pid}") else False


def look(pid: int) -> Process | None:
    """Return what /proc says about a process; None if it is missing, a zombie, or unknown."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
        found = Process(pid, words[0].decode(), int(words[1]), int(words[19]))
    except (OSError, ValueError, IndexError):
        return None
    return found if found.state not in ("Z", "X") else None


def send(pid: int, number: int, *, owner: int, check: Callable[[Process], bool]) -> bool:
    """Send a signal to a process that a file of `owner` names; return whether it was sent. Never raises OSError.

    :param owner: user whose rights are used if this process is root. It must be the file's owner, never its content.
    :param check: examines the held process: whether it is the intended one.
    """
    if pid <= 1 or pid == os.getpid():
        return False
    try:
        held = _hold(pid)
    except (OSError, OverflowError):
        return False
    try:
        # if the process ends now, its descriptor stays dead, even if the number is reused
        process = look(pid)
        if process is None or not check(process):
            return False
        with _acting_as(owner):
            if held is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(held, number)
        return True
    except OSError:
        return False
    finally:
        if held is not None:
            os.close(held)


def _hold(pid: int) -> int | None:
    """Return a descriptor of a process; None where the kernel has none (Linux before 5.3, some sandboxes).

    Then the owner's rights protect others, and a process id that is reused within microseconds gets the signal.
    """
    try:
        return os.pidfd_open(pid)
    except AttributeError:
        return None
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EPERM):
            return None
        raise


@contextlib.contextmanager
def _acting_as(user: int) -> Iterator[None]:
    """Change root's real and effective user within the block: a signal checks both.

    :raises OSError: if root may not (a container without the capability).
    """
    if os.geteuid() != 0 or user == 0:
        yield
        return
    real, effective, saved = os.getresuid()
    os.setresuid(user, user, 0)
    try:
        yield
    finally:
        os.setresuid(real, effective, saved)
