"""pytest plugin for somebody else's test suite: every Flask app that is made gets the extension."""

from __future__ import annotations

import functools
from typing import Any

from flask import Flask

from flask_stability import StabilityExt

_init = Flask.__init__


@functools.wraps(_init)
def _with_extension(self: Flask, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    if self.import_name != "flask_stability.health":
        StabilityExt(self)


Flask.__init__ = _with_extension  # type: ignore[method-assign]
