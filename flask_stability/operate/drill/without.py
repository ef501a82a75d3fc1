"""The app without the extension, for a comparison: plain gunicorn, and nothing that the extension does by itself.

``python -m flask_stability.operate.drill.without ARGUMENTS…`` is ``gunicorn ARGUMENTS…`` with these differences:
``install`` installs no hook; ``StabilityExt(app)`` adds no middleware and no error handler, so nothing is watched,
answered or replaced; ``keep`` stores nothing; ``StabilityPool`` is SQLAlchemy's own ``QueuePool``. Calls of the app
itself, such as ``stability.connection()``, stay: it could not run without them.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from typing import Any

from flask import Flask

from ... import extension, server
from ...errors import handlers


def switch_off() -> None:
    """Take the extension out of this process and of those forked from it; for good."""
    server.install = _install_nothing
    handlers.init_app = _handle_nothing  # type: ignore[assignment]
    wire = extension.StabilityExt.init_app

    def init_app(self: extension.StabilityExt, app: Flask) -> None:
        plain = app.wsgi_app
        wire(self, app)
        app.wsgi_app = plain  # type: ignore[method-assign]

    extension.StabilityExt.init_app = init_app  # type: ignore[method-assign]
    extension.StabilityExt.keep = _keep_nothing  # type: ignore[method-assign]
    try:
        from sqlalchemy.pool import QueuePool

        from ... import sqlalchemy
    except ImportError:
        return
    sqlalchemy.StabilityPool = QueuePool  # type: ignore[misc]


def _install_nothing(namespace: dict[str, Any], **options: Any) -> None:
    """In place of `flask_stability.server.install`."""


def _handle_nothing(*_: Any) -> None:
    """In place of the error handlers' wiring."""


def _keep_nothing(self: object, *_: Any, **__: Any) -> Callable[[Any], Any]:
    """In place of ``stability.keep``."""
    return lambda view: view


def main() -> None:
    """Run gunicorn."""
    switch_off()
    runpy.run_module("gunicorn", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
