"""Tables and first stock, made when they are first needed; the same statements on SQLite and MariaDB."""

from __future__ import annotations

import threading

from flask_stability.database import PooledConnection

TABLES = (
    "CREATE TABLE IF NOT EXISTS stock (sku VARCHAR(32) NOT NULL PRIMARY KEY, name VARCHAR(100) NOT NULL,"
    " quantity INTEGER NOT NULL CHECK (quantity >= 0))",
    "CREATE TABLE IF NOT EXISTS orders (id VARCHAR(32) NOT NULL PRIMARY KEY, sku VARCHAR(32) NOT NULL,"
    " quantity INTEGER NOT NULL, customer VARCHAR(100) NOT NULL, created VARCHAR(32) NOT NULL)",
)
FIRST_STOCK = (("A-1", "Kettle", 1000000), ("B-2", "Teapot", 1000000), ("C-3", "Cup", 1000000))

_ready = threading.Event()


def ensure(connection: PooledConnection) -> None:
    """Make the tables once per process; called again after the database lost them."""
    if _ready.is_set():
        return
    cursor = connection.cursor()
    for statement in TABLES:
        cursor.execute(statement)
    for sku, name, quantity in FIRST_STOCK:
        cursor.execute("SELECT sku FROM stock WHERE sku = %s", (sku,))
        if cursor.fetchone() is None:
            try:
                cursor.execute("INSERT INTO stock (sku, name, quantity) VALUES (%s, %s, %s)", (sku, name, quantity))
            except Exception as error:
                if type(error).__name__ != "IntegrityError":  # another worker was first
                    raise
    _ready.set()


def forget() -> None:
    """A table was missing: make them again at the next request."""
    _ready.clear()
