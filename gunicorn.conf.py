"""gunicorn's configuration of the sample app: ``gunicorn`` alone in this folder starts it.

It listens on the loopback interface, since the sample shows its details to everybody: SERVER_HOST says otherwise.
"""

import os
import sys

from flask_stability.config import load_dotenv, server_bind
from flask_stability.exceptions import ConfigError
from flask_stability.server import install

try:
    # what is set in the environment already stays; the sample's own choices may be others there or in .env
    load_dotenv(defaults={"STABILITY_LOG_DIR": "logs", "STABILITY_DB_FROM_ENV": "on"})
    bind = server_bind("127.0.0.1")  # SERVER_HOST, SERVER_PORT
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(1)

wsgi_app = "sample_app:create_app()"
preload_app = False  # so that HUP loads new code

def when_ready(server):
    """Say where to look."""
    for url in [str(listener) for listener in server.LISTENERS if str(listener).startswith("http")]:
        print(f"\n  service    {url}/orders\n  health     {url}/health\n  dashboard  {url}/health/dashboard"
              f"\n  logs       {os.path.abspath(os.environ['STABILITY_LOG_DIR'])}"
              "\n  workers    flask stability status\n", file=sys.stderr, flush=True)


try:
    # gthread workers, threads, timeouts: what gunicorn's options and WEB_CONCURRENCY do not say otherwise
    install(globals(), defaults=True)
except ConfigError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
