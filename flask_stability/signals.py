"""Blinker signals that an application can subscribe to.

Receivers run in a thread of the extension (the alerts' thread, or the guard's), which logs their exceptions and never
passes them on. The sender is the name of the service.
"""

from __future__ import annotations

from typing import Any

from blinker import Namespace, Signal

_namespace = Namespace()

#: A check changed its status, told by the leading worker. Keywords: ``check``, ``old``, ``new``, ``detail``, ``id``.
health_changed: Signal = _namespace.signal("health-changed")

#: This worker asked for its replacement. Keywords: ``reason``, ``detail``, ``pid``.
worker_retired: Signal = _namespace.signal("worker-retired")

#: Memory, a connection or another resource looks leaked. Keywords: ``kind``, ``detail``.
leak_suspected: Signal = _namespace.signal("leak-suspected")
#: The kind of leak that took all connections of a pool: only a new process has connections again.
POOL = "pool"

#: A request passed its deadline. Keywords: ``request_id``, ``path``, ``seconds``.
request_overdue: Signal = _namespace.signal("request-overdue")


def send(signal: Signal, sender: str, **kwargs: Any) -> list[Exception]:
    """Send to every receiver even if one raises; return their exceptions, never raise."""
    failures: list[Exception] = []
    for receiver in list(signal.receivers_for(sender)) if signal.receivers else ():
        try:
            receiver(sender, **kwargs)
        except Exception as error:
            failures.append(error)
    return failures
