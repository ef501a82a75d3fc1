"""A gunicorn configuration for an app without one: ``gunicorn -c python:flask_stability.server.conf app:app``."""

from __future__ import annotations

import sys

from flask_stability.config import load_dotenv, server_bind
from flask_stability.exceptions import ConfigError
from flask_stability.server import install

try:
    load_dotenv()
    bind = server_bind()
    install(globals(), defaults=True)
except ConfigError as _error:
    print(_error, file=sys.stderr)
    sys.exit(1)
