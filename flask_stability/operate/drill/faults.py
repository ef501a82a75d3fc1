"""The faults that a drill injects into the service under test."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable
from urllib.parse import urlsplit

from ...config import Settings
from ...database.credentials import Credentials
from ...database.drivers import connect_plainly
from ...dburl import DatabaseURL
from .service import Service


def kill_worker(service: Service) -> None:
    """Send SIGKILL to a worker, as the kernel does when memory is gone."""
    service.oldest().kill()


def kill_all_workers(service: Service) -> None:
    """Send SIGKILL to all workers at once."""
    for process in service.workers():
        process.kill()


def freeze_worker(service: Service) -> None:
    """Send SIGSTOP to a worker: it neither answers nor dies."""
    service.oldest().suspend()


def segfault_worker(service: Service) -> None:
    """Send SIGSEGV to a worker, as a broken C extension does."""
    service.oldest().send_signal(signal.SIGSEGV)


def retire_worker(service: Service) -> None:
    """Send SIGTERM to a worker: it leaves in good order."""
    service.oldest().terminate()


def reload(service: Service) -> None:
    """Send SIGHUP to the master: new workers with new code."""
    service.master.send_signal(signal.SIGHUP)


def bad_requests(service: Service) -> None:
    """Send 200 malformed requests."""
    parts = urlsplit(service.url)
    junk = (b"GARBAGE\r\n\r\n", b"GET /%0a%0d HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
            b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n")
    for number in range(200):
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), 5) as link:
            link.sendall(junk[number % len(junk)])


def drop_database_connections(address: DatabaseURL, _: Service) -> None:
    """KILL every connection of the service's database user but our own."""
    link = connect_plainly(address, 5)
    try:
        cursor = link.cursor()
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s AND id <> CONNECTION_ID()",
                       (address.user,))
        for (number,) in cursor.fetchall():
            with contextlib.suppress(link.Error):
                cursor.execute("KILL %s", (number,))
    finally:
        link.close()


def database_address(settings: Settings) -> DatabaseURL | None:
    """Return the address of the service's MySQL or MariaDB, from its settings and their files; None without one."""
    url = settings.db_url
    return Credentials(settings)() if url and not url.startswith("sqlite") else None


FAULTS: tuple[tuple[str, Callable[[Service], None]], ...] = (
    ("worker killed", kill_worker), ("worker crashes (SIGSEGV)", segfault_worker),
    ("all workers killed", kill_all_workers), ("worker retired", retire_worker), ("worker frozen", freeze_worker),
    ("storm of bad requests", bad_requests), ("reload", reload))
