"""``python -m flask_stability.operate.drill``."""

from __future__ import annotations

from .command import drill_command

drill_command(prog_name="python -m flask_stability.operate.drill")
