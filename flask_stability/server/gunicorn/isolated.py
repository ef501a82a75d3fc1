"""The isolation worker: a sync worker, whatever class the others have, that gets requests on a Unix socket."""

from __future__ import annotations

import contextlib
from typing import Any, ClassVar

from gunicorn.workers.sync import SyncWorker

from .listeners import let_go

#: The worker that accepted the request has applied all these; the request that it hands over is longer by a header.
_SETTINGS: dict[str, Any] = {"certfile": None, "keyfile": None, "proxy_protocol": False, "accesslog": None,
                             "limit_request_line": 0, "limit_request_field_size": 0, "limit_request_fields": 32768}


class IsolatedWorker(SyncWorker):  # type: ignore[misc]
    """Serves one request at a time.

    :cvar public: the service's listening sockets, which it closes.
    """

    public: ClassVar[list[Any]] = []

    def init_process(self) -> None:
        """Close the service's listeners, and relax the settings that the accepting worker has applied."""
        for listener in self.public:
            let_go(listener)
        for name, value in _SETTINGS.items():
            with contextlib.suppress(Exception):  # not every version has each of them
                self.cfg.set(name, value)
        super().init_process()
