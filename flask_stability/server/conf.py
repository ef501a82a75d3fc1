"""A gunicorn configuration for an app without one: ``gunicorn -c python:flask_stability.server.conf app:app``."""

from __future__ import annotations

import os
import sys

from flask_stability.config import load_dotenv, server_bind
from flask_stability.exceptions import ConfigError
from flask_stability.server import install

try:
    load_dotenv()
    bind = server_bind()
except ConfigError as _error:
    print(_error, file=sys.stderr)
    sys.exit(1)

worker_class = "gthread"
workers = min(4, 2 * (os.cpu_count() or 1))
threads = 4
worker_connections = 3 * threads  # a wedged worker accepts no more than it could serve
timeout = 30
graceful_timeout = 30
keepalive = 5
control_socket_disable = True  # gunicorn's default path is one for all services of a user

install(globals())
