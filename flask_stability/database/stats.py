"""Count the pool's figures, under psycopg_pool's names, and publish them on the scoreboard."""

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
Stats = dict[str, int | float | str]


def publish_gauges(row: board.Row, pools: list[tuple[Stats, float]]) -> None:
    """Write the totals of all pools of this process to the worker's row.

    :param pools: each pool's figures, and since when all its connections are in use (monotonic seconds, 0.0 = not now).
    """
    for name, word in _GAUGES.items():
        row.words[word] = sum(int(stats[name]) for stats, _ in pools)
    row.words[board.W_DB_BREAKER] = int(any(stats["breaker_state"] == "open" for stats, _ in pools))
    row.words[board.W_DB_FULL_NS] = int(1e9 * min((since for _, since in pools if since), default=0.0))


class Counters(dict[str, float]):
    """Counters by name; times are in milliseconds."""

    def __init__(self) -> None:
        super().__init__(dict.fromkeys(_WORDS, 0))
        self._lock = threading.Lock()
        self._published: dict[str, int] = dict.fromkeys(_WORDS, 0)

    def add(self, name: str, number: float = 1) -> None:
        """Add to a counter. Thread-safe."""
        with self._lock:
            self[name] += number

    def publish(self, row: board.Row, stats: Stats) -> None:
        """Add the increase to the worker's row, which several pools may share."""
        for name, word in _WORDS.items():
            new = int(stats[name]) - self._published[name]
            if new:
                row.add(word, new)
                self._published[name] += new
