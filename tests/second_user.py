"""A second, real user: what root and it do to each other."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from support import fork, open_to_all

NOBODY = 65534
#: Only root can become another user, or give files away.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as a second user")


def become(uid: int = NOBODY) -> None:
    """For good; in a child."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def as_nobody(function: Callable[[], None], uid: int = NOBODY) -> None:
    """Run in a child that is another user; fails if the function does."""
    def run() -> None:
        become(uid)
        try:
            function()
        except BaseException:
            traceback.print_exc()
            raise

    assert os.waitpid(fork(run), 0)[1] == 0


def reachable(folder: Path) -> Path:
    """A temporary folder that every user can get to."""
    open_to_all(folder)
    return folder


def given(folder: Path, uid: int = NOBODY) -> Path:
    """A new folder that belongs to the other user."""
    folder.mkdir()
    os.chown(folder, uid, uid)
    return reachable(folder)
