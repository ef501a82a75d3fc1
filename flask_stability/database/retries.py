"""What units of work have in common, on a connection of ours or in a Session: how often one is run again, and where."""

from __future__ import annotations

import inspect
import random
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception

from .. import request
from ..dberrors import ErrorClass
from ..exceptions import StabilityError

T = TypeVar("T")

ATTEMPTS = 3
LOST = frozenset({ErrorClass.LINK_LOST, ErrorClass.CONNECT})


class Budget:
    """Tokens for retries: each unit gives 0.2, each second 10, at most 100.

    Google SRE book, chapter 21, "Handling overload": per-client retry budget.
    """

    def __init__(self, share: float = 0.2, rate: float = 10.0, most: float = 100.0) -> None:
        self._share, self._rate, self._most = share, rate, most
        self._lock = threading.Lock()
        self._tokens = rate
        self._last = time.monotonic()

    def unit(self) -> None:
        """One unit of work began."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Whether one retry may be made."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._most, self._tokens + (now - self._last) * self._rate)
            self._last = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def flow() -> tuple[int, int, int]:
    """Identify what runs this code: its thread, greenlet and asyncio task. Contexts are copied from one to another."""
    greenlet, asyncio = sys.modules.get("greenlet"), sys.modules.get("asyncio")
    task = None
    if asyncio is not None:
        with suppress(RuntimeError):  # no event loop runs here
            task = asyncio.current_task()
    return (threading.get_ident(), id(greenlet.getcurrent()) if greenlet is not None else 0,
            id(task) if task is not None else 0)


def demand_plain(function: Callable[..., Any]) -> None:
    """Refuse a function whose body runs later than its call.

    :raises StabilityError: with what to do instead.
    """
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) \
            or inspect.isasyncgenfunction(function):
        raise StabilityError(f"@transaction cannot wrap {function.__qualname__}: it would COMMIT before the body "
                             "runs; give a plain function, or use `with stability.transaction()` inside")


def persevere(once: Callable[[], T], again: Callable[[BaseException], bool], count: Callable[[], None],
              attempts: int, budget: Budget) -> T:
    """Run `once` until it returns, or may not be run again: `again` says so of its error, and time and budget.

    :param count: called before each further try.
    """
    budget.unit()

    def wait(state: RetryCallState) -> float:
        return random.uniform(0, min(2.0, 0.05 * 2 ** state.attempt_number))

    def stop(state: RetryCallState) -> bool:
        left = request.remaining()
        return (state.attempt_number >= attempts or (left is not None and left - state.upcoming_sleep <= 1.0)
                or not budget.take())

    result: T = Retrying(retry=retry_if_exception(again), wait=wait, stop=stop, before_sleep=lambda state: count(),
                         reraise=True)(once)
    return result
