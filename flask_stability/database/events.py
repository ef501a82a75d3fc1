"""Gives all log events of a pool one shape."""

from __future__ import annotations

from typing import Any

from .. import logs
from .drivers import Driver
from .inventory import Inventory


class Events:
    """Logs a pool's events with its sizes."""

    def __init__(self, driver: Driver, inventory: Inventory[Any]) -> None:
        self._driver, self._inventory = driver, inventory

    def log(self, event: str, *, level: str = "WARNING", **fields: Any) -> None:
        """Log an event with the pool's sizes."""
        inventory = self._inventory
        idle = len(inventory.idle)
        logs.error(event, level=level, database=self._driver.describe(), total=inventory.taken + idle,
                   active=inventory.in_use, idle=idle, waiting=len(inventory.waiters), **fields)
