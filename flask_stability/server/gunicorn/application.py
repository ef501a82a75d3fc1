"""The configuration that ``gunicorn ARGUMENTS`` would read here, and its app, without starting a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.errors import ConfigError as NoApp


class Application(WSGIApplication):  # type: ignore[misc]
    """Load everything but the app, which ``wsgi()`` loads.

    :ivar given: the command line or the configuration names an app.
    :ivar positional: the command line names it.
    """

    given = True
    positional = False

    def load_config(self) -> None:
        """Load the configuration as gunicorn does, but accept one without an app."""
        try:
            super().load_config()
        except NoApp as error:  # gunicorn raises this last: everything else is loaded
            if "No application module" not in str(error):
                raise
            self.given = False

    def init(self, parser: Any, opts: Any, args: list[str]) -> None:
        """Note whether an argument names the app, then do as gunicorn does."""
        self.positional = bool(args)
        super().init(parser, opts, args)


def read_application(arguments: Sequence[str]) -> Application:
    """Read the configuration; the arguments become the process's command line.

    :raises SystemExit: if it cannot be read; gunicorn writes the reason to stderr.
    """
    sys.argv = ["gunicorn", *arguments]
    return Application("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
