"""Other processes, as the kernel tells of them, and signals to those that only a shared file names.

Whoever can write a scoreboard can put any process id in it, and a number may have become another process's. So the
number is read once, the process is held by a descriptor (pidfd) before it is looked at, what /proc says decides, and
the signal is sent with the rights of the board's owner: root kills nothing for a user that the user could not kill.
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
_SLACK_NS = 200_000_000  # of the comparison of two clocks, one of which ticks


class Process(NamedTuple):
    """A process that is there, and no zombie.

    :ivar state: its state letter; ``T`` is stopped.
    :ivar parent: process id of its parent.
    :ivar started: clock ticks from the machine's start to its own; with the number it names one process for good.
    """

    pid: int
    state: str
    parent: int
    started: int

    def is_older_than(self, moment_ns: int) -> bool:
        """Whether it was there at a moment of the monotonic clock, as far as the clocks tell."""
        age = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self.started * _TICK_NS
        return age >= time.monotonic_ns() - moment_ns - _SLACK_NS

    def maps(self, path: str) -> bool | None:
        """Whether it has a file in its memory; None if this user may not know."""
        end = f" {os.path.realpath(path)}"
        try:
            with open(f"/proc/{self.pid}/maps", encoding="utf-8", errors="replace") as maps:
                return any(line.rstrip("\n").endswith(end) for line in maps)
        except FileNotFoundError:
            return False
        except OSError:
            return None if os.path.isdir(f"/proc/{self.pid}") else False


def look(pid: int) -> Process | None:
    """What /proc says of a process; None if there is none, if it is a zombie, or if that cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].split()
        found = Process(pid, words[0].decode(), int(words[1]), int(words[19]))
    except (OSError, ValueError, IndexError):
        return None
    return found if found.state not in ("Z", "X") else None


def send(pid: int, number: int, *, owner: int, check: Callable[[Process], bool]) -> bool:
    """Send a signal to a process that a file of `owner` names; whether it was sent. Never raises OSError.

    :param owner: user whose rights are used, where this process is root; must be the file's, never what is in it.
    :param check: looks at the process while it is held: whether it is the one that is meant.
    """
    if pid <= 1 or pid == os.getpid():
        return False
    try:
        held = _hold(pid)
    except (OSError, OverflowError):
        return False
    try:
        # a process that ends now keeps its descriptor dead, whoever gets its number
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
    """A descriptor of a process; None where there are none (Linux before 5.3, some sandboxes): the owner's rights are
    then what protects others, and a number that is given anew within microseconds gets the signal.
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
    """As root: within the block real and effective user are another (a signal looks at both).

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
