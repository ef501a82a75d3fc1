"""A process that was started with standard descriptors closed: the next file it opens would get their number.

What anybody then writes to stderr goes into that file, the scoreboard for one.
"""

from __future__ import annotations

import os
import sys


def reserve() -> None:
    """Open /dev/null on those of the descriptors 0 to 2 that are closed, and give Python the streams it lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest that is free: this one, but for another thread's
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, f"__{name}__") is None:
            stream = open(os.devnull, mode)  # noqa: SIM115
            setattr(sys, f"__{name}__", stream)
            if getattr(sys, name) is None:
                setattr(sys, name, stream)
