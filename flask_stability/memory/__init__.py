"""Memory: watched, judged, recycled, explained. Knows neither Flask nor gunicorn."""

from __future__ import annotations

from .process import collect, trim

__all__ = ["collect", "trim"]
