"""The pool's figures, under psycopg_pool's names, and their way to the scoreboard."""

from __future__ import annotations

import threading

from .. import scoreboard as board

_WORDS = {
    "requests_num": board.W_DB_REQUESTS, "requests_queued": board.W_DB_QUEUED,
    "requests_wait_ms": board.W_DB_WAIT_MS, "requests_errors": board.W_DB_ERRORS, "usage_ms": board.W_DB_USAGE_MS,
    "connections_num": board.W_DB_CONNECTIONS, "connections_ms": board.W_DB_CONNECT_MS,
    "connections_errors": board.W_DB_CONNECT_ERRORS, "connections_lost": board.W_DB_LOST,
    "returns_bad": board.W_DB_BAD_RETURNS, "leaks_suspected": board.W_DB_LEAKS, "retries_num": board.W_DB_RETRIES}
_GAUGES = {
    "pool_size": board.W_DB_SIZE, "pool_available": board.W_DB_AVAILABLE, "pool_in_use": board.W_DB_IN_USE,
    "requests_waiting": board.W_DB_WAITING, "pool_max": board.W_DB_MAX}


class Counters(dict[str, float]):
    """What only grows, by name; times are milliseconds."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(_WORDS, 0))
        self._lock = threading.Lock()
        self._published: dict[str, int] = dict.fromkeys(_WORDS, 0)

    def add(self, name: str, number: float = 1) -> None:
        """Count, whatever other threads count."""
        with self._lock:
            self[name] += number

    def publish(self, row: board.Row, stats: dict[str, int | float | str]) -> None:
        """To the worker's row. Several pools may share it: what is new is added."""
        for name, word in _GAUGES.items():
            row.words[word] = int(stats[name])
        row.words[board.W_DB_BREAKER] = int(stats["breaker_state"] == "open")
        for name, word in _WORDS.items():
            new = int(stats[name]) - self._published[name]
            if new:
                row.add(word, new)
                self._published[name] += new
