"""Standard descriptors that were closed when the process started: the next file it opens would get their number.

Output to stderr would then go into that file, for example the scoreboard.
"""

from __future__ import annotations

import os
import sys


def reserve() -> None:
    """Open /dev/null on each closed descriptor from 0 to 2, and give Python the streams it lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one, unless another thread took it
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
