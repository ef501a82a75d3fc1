"""gunicorn's server hooks. Ours never raise. The user's own hooks run as well; we contain their exceptions like ours,
except in hooks that may refuse to start the service or to serve a request.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import logs, scoreboard
from ..runtime import runtime
from . import master, worker_life
from .process import contained

#: The hooks that we chain, and the number of arguments that gunicorn passes to each.
ARITY = {"on_starting": 1, "on_reload": 1, "when_ready": 1, "pre_fork": 2, "post_fork": 2, "post_worker_init": 1,
         "worker_abort": 1, "pre_request": 2, "child_exit": 2, "worker_exit": 2, "nworkers_changed": 3, "on_exit": 1}
#: Hooks whose exception refuses something, as in plain gunicorn: the start of the service, or one request.
_PASSED_ON = frozenset({"on_starting", "when_ready", "pre_request"})


def _pre_request(worker: Any, req: Any) -> None:
    """Close kept-alive connections in good order, one answer at a time, before this worker retires."""
    try:
        row = runtime.row
        if row is not None and row.orders[scoreboard.O_RETIRE_STATE]:
            req.force_close()
    except Exception as error:  # caught here, since gunicorn calls this hook unwrapped: no request may fail for it
        logs.process("hook_failed", level="ERROR", hook="pre_request", error=f"{type(error).__name__}: {error}"[:500])


#: Our own hooks.
OWN: dict[str, Callable[..., None]] = {
    "on_starting": master.on_starting, "on_reload": master.on_reload, "when_ready": master.when_ready,
    "pre_fork": master.pre_fork, "child_exit": master.child_exit, "nworkers_changed": master.nworkers_changed,
    "on_exit": master.on_exit, "post_fork": worker_life.post_fork, "post_worker_init": worker_life.post_worker_init,
    "worker_abort": worker_life.worker_abort, "worker_exit": worker_life.worker_exit, "pre_request": _pre_request}


def chain(namespace: dict[str, Any]) -> None:
    """Put our hooks around those of a configuration.

    Set ``forwarder_headers`` to none where the configuration does not set it. Otherwise gunicorn takes a request's path
    from the client's ``SCRIPT_NAME`` header if the connection comes from a trusted address, as every request does
    behind a proxy on the same machine.
    """
    namespace.setdefault("forwarder_headers", "")
    for name, arity in ARITY.items():
        user = namespace.get(name)
        if getattr(user, "_flask_stability", False) or user is _pre_request:
            continue
        namespace[name] = _chained(name, arity, OWN[name], user)


def _chained(name: str, arity: int, own: Callable[..., None], user: Callable[..., Any] | None) -> Callable[..., None]:
    if name == "pre_request" and user is None:
        return _pre_request  # on the path of every request: not wrapped
    # Our hook says "ready", or frees what the user's hook may still use: then the user's hook runs first.
    first = name not in ("post_worker_init", "worker_exit", "on_exit")

    def call(*args: Any) -> None:
        if first:
            contained(name, own, args)
        if user is not None:
            if name in _PASSED_ON:
                user(*args)
            else:
                contained(name, user, args)
        if not first:
            contained(name, own, args)

    # gunicorn checks the number of parameters
    if arity == 1:
        def hook1(a: Any) -> None:
            call(a)
        hook: Any = hook1
    elif arity == 2:
        def hook2(a: Any, b: Any) -> None:
            call(a, b)
        hook = hook2
    else:
        def hook3(a: Any, b: Any, c: Any) -> None:
            call(a, b, c)
        hook = hook3
    hook.__name__ = hook.__qualname__ = name
    hook._flask_stability = True
    return hook  # type: ignore[no-any-return]
