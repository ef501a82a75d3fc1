"""The common part of units of work, on our connections or in a Session: how often to retry one, and where it runs."""

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
        """Count a new unit of work."""
        with self._lock:
            self._tokens = min(self._most, self._tokens + self._share)

    def take(self) -> bool:
        """Return whether the budget allows one retry, and spend its token."""
        with self._lock:
            now = time.monotonic()
            self._tokens = min(self._most, self._tokens + (now - self._last) * self._rate)
            self._last = now
            if self._tokens < 1:
                return False
            self._tokens -= 1
            return True


def flow() -> tuple[int, int, int]:
    """Identify the thread, greenlet and asyncio task that run this code.

    A context variable cannot: one of them may copy its context to another.
    """
    greenlet, asyncio = sys.modules.get("greenlet"), sys.modules.get("asyncio")
    task = None
    if asyncio is not None:
        with suppress(RuntimeError):  # no event loop runs here
            task = asyncio.current_task()
    return (threading.get_ident(), id(greenlet.getcurrent()) if greenlet is not None else 0,
            id(task) if task is not None else 0)


def demand_plain(function: Callable[..., Any]) -> None:
    """Refuse a function whose body runs later than its call.

    :raises StabilityError: with the remedy.
    """
    if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function) \
            or inspect.isasyncgenfunction(function):
        raise StabilityError(f"@transaction cannot wrap {function.__qualname__}: it would COMMIT before the body "
                             "runs; give a plain function, or use `with stability.transaction()` inside")


def persevere(once: Callable[[], T], again: Callable[[BaseException], bool], count: Callable[[], None],
              attempts: int, budget: Budget) -> T:
    """Run `once` until it returns, or until `again`, the request's deadline, `attempts` or the budget forbids a retry.

    :param again: returns whether a unit may run again after this error.
    :param count: called before each retry.
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
