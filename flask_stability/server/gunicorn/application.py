"""The configuration that ``gunicorn ARGUMENTS`` would read here, and its app, without a server."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from gunicorn.app.wsgiapp import WSGIApplication
from gunicorn.errors import ConfigError as NoApp


class Application(WSGIApplication):  # type: ignore[misc]
    """Everything is loaded but the app, by ``wsgi()``.

    :ivar given: an app is named, by the command line or the configuration.
    :ivar positional: by the command line.
    """

    given = True
    positional = False

    def load_config(self) -> None:
        """gunicorn's, but a configuration without an app is one as well."""
        try:
            super().load_config()
        except NoApp as error:  # raised last: everything else is loaded
            if "No application module" not in str(error):
                raise
            self.given = False

    def init(self, parser: Any, opts: Any, args: list[str]) -> None:
        """gunicorn's."""
        self.positional = bool(args)
        super().init(parser, opts, args)


def read_application(arguments: Sequence[str]) -> Application:
    """Read it; this becomes the process's command line.

    :raises SystemExit: if it cannot be read; the reason is on stderr.
    """
    sys.argv = ["gunicorn", *arguments]
    return Application("%(prog)s [OPTIONS] [APP_MODULE]", prog="gunicorn")
