"""A small real service: orders from a stock, on SQLite or MariaDB, kept up by flask_stability."""

from __future__ import annotations

import os

from flask import Flask

from flask_stability import StabilityExt

stability = StabilityExt()


def create_app(config: dict[str, object] | None = None) -> Flask:
    """The app.

    :param config: overrides for ``app.config``.
    """
    app = Flask(__name__, instance_path=os.path.abspath(os.environ.get("SAMPLE_INSTANCE") or "instance"))
    app.config["MAX_CONTENT_LENGTH"] = 16 << 10  # an order is small
    app.config["STABILITY_HEALTH_DETAILS"] = os.environ.get("STABILITY_HEALTH_DETAILS") or "always"
    app.config.update(config or {})
    stability.init_app(app)

    from . import views

    app.register_blueprint(views.blueprint)
    if os.environ.get("SAMPLE_FAULTS") == "1":
        from . import faults

        app.register_blueprint(faults.blueprint)
    return app
