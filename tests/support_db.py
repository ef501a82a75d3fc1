"""A real MariaDB for the tests, and a TCP proxy that does to a link what networks do."""

from __future__ import annotations

import atexit
import contextlib
import getpass
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import MySQLdb
import pymysql
import pytest

from flask_stability import request
from flask_stability.config import Settings
from flask_stability.database.pool import Pool
from support import free_port, wait_until

_OPTIONS = ("--skip-name-resolve", "--skip-log-bin", "--performance-schema=OFF", "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=2", "--innodb-log-file-size=16M", "--innodb-fast-shutdown=2",
            "--innodb-lock-wait-timeout=50", "--bind-address=127.0.0.1", "--max-connections=300")


class dbapi:  # a name like a module's, as `MySQLdb` is
    """The errors of both drivers, for ``except`` and `pytest.raises`."""

    Error = (MySQLdb.Error, pymysql.Error)
    OperationalError = (MySQLdb.OperationalError, pymysql.OperationalError)
    ProgrammingError = (MySQLdb.ProgrammingError, pymysql.ProgrammingError)
    InterfaceError = (MySQLdb.InterfaceError, pymysql.InterfaceError)


class MariaDB:
    """A server with a data directory of its own: root without a password on the socket, app/secret over TCP.

    :cvar product: "MariaDB" or "MySQL".
    :ivar scheme: of the address that services get; it names their driver.
    """

    product = "MariaDB"
    scheme = "mysql"

    def __init__(self, *options: str) -> None:
        self.directory = tempfile.mkdtemp(prefix="stability-db-")
        self.socket = os.path.join(self.directory, "s.sock")
        self.port = free_port()
        self.user, self.password, self.name = "app", "secret", "app"
        self._options = options
        self._where = (f"--user={getpass.getuser()}", f"--datadir={self.directory}/data", f"--tmpdir={self.directory}")
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = False
        atexit.register(self.destroy)
        with open(os.path.join(self.directory, "log"), "ab") as log:
            subprocess.run(self._install(*self._where), check=True, stdout=log, stderr=log, timeout=150)
        self.start()
        self.admin(f"CREATE DATABASE {self.name}")
        self.admin(f"CREATE USER {self.user}@'%' IDENTIFIED BY '{self.password}'")
        self.admin(f"GRANT ALL ON {self.name}.* TO {self.user}@'%'")

    def _install(self, *who_and_where: str) -> list[str]:
        return ["mariadb-install-db", "--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db",
                *who_and_where]

    def _serve(self, *who_and_where: str) -> list[str]:
        return ["mariadbd", "--no-defaults", *_OPTIONS, *who_and_where]

    # -- its life ------------------------------------------------------------------------------------------------

    def start(self, wait: bool = True) -> MariaDB:
        """Start it if it does not run."""
        if self._process is None:
            with open(os.path.join(self.directory, "log"), "ab") as log:
                self._process = subprocess.Popen(
                    self._serve(*self._where, f"--socket={self.socket}", f"--port={self.port}", *self._options),
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        if wait:
            wait_until(self.answers, 60, 0.01, f"{self.product} answers")
        return self

    def stop(self) -> None:
        """Shut it down in order."""
        self._end(signal.SIGTERM)

    def kill9(self) -> None:
        """As the kernel does that is out of memory."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It keeps its sockets and answers nothing."""
        self._signal(signal.SIGSTOP)
        self._frozen = True
        if self._process is not None:  # until all of its threads stand still, some may answer
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """It goes on."""
        self._signal(signal.SIGCONT)
        self._frozen = False

    def destroy(self) -> None:
        """End it and remove its files."""
        self._end(signal.SIGKILL)
        shutil.rmtree(self.directory, ignore_errors=True)
        atexit.unregister(self.destroy)

    @property
    def pid(self) -> int:
        """Of the running server."""
        assert self._process is not None, f"{self.product} does not run"
        return self._process.pid

    @property
    def running(self) -> bool:
        """It was started and not ended by one of these methods."""
        return self._process is not None

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: int) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if self._frozen:
            process.send_signal(signal.SIGCONT)
            self._frozen = False
        process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)

    # -- talking to it -------------------------------------------------------------------------------------------

    def connect(self, **options: Any) -> Any:
        """A plain mysqlclient connection of the app's user over TCP, in autocommit."""
        defaults = {"host": "127.0.0.1", "port": self.port, "user": self.user, "password": self.password,
                    "database": self.name, "charset": "utf8mb4", "autocommit": True, "connect_timeout": 30}
        return MySQLdb.connect(**{**defaults, **options})

    def root(self) -> Any:
        """A connection as root over the socket."""
        return MySQLdb.connect(unix_socket=self.socket, user="root", autocommit=True, connect_timeout=30,
                               charset="utf8mb4", read_timeout=60)

    def admin(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute as root over the socket; the rows."""
        with contextlib.closing(self.root()) as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall())

    def answers(self) -> bool:
        """It is up."""
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"{self.product} ended:\n" + self.log()[-2000:])
        try:
            return self.admin("SELECT 1") == [(1,)]
        except MySQLdb.Error:
            return False

    def log(self) -> str:
        """Its error log."""
        with open(os.path.join(self.directory, "log"), errors="replace") as log:
            return log.read()

    def sessions(self) -> list[int]:
        """Ids of the app's connections as the server sees them."""
        return [int(row[0]) for row in self.admin(
            "SELECT id FROM information_schema.processlist WHERE user=%s ORDER BY id", self.user)]

    def kill_sessions(self) -> int:
        """End the app's connections from the server's side; how many."""
        sessions = self.sessions()
        for number in sessions:
            with contextlib.suppress(MySQLdb.OperationalError):  # gone by itself meanwhile
                self.admin(f"KILL {number}")
        wait_until(lambda: not set(sessions) & set(self.sessions()), interval=0.01, message="killed sessions are gone")
        return len(sessions)

    def status(self, name: str) -> int:
        """One of the server's status counters."""
        return int(self.admin("SHOW GLOBAL STATUS LIKE %s", name)[0][1])

    def url_for(self, port: int) -> str:
        """STABILITY_DB_URL by way of another port, such as a proxy's."""
        return f"{self.scheme}://{self.user}:{self.password}@127.0.0.1:{port}/{self.name}"

    @property
    def url(self) -> str:
        """STABILITY_DB_URL."""
        return self.url_for(self.port)

    @property
    def env(self) -> dict[str, str]:
        """DB_HOST and its companions."""
        return {"DB_HOST": "127.0.0.1", "DB_PORT": str(self.port), "DB_USER": self.user,
                "DB_PASSWORD": self.password, "DB_NAME": self.name}


class _Link:
    """One client's connection through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        #: Silent for good: what is sent is swallowed.
        self.lost = False
        #: Its next reply is swallowed, then it ends.
        self.cut = False

    def end(self) -> None:
        """Close both sides; wakes the threads that read them."""
        for side in (self.client, self.server):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


class FaultProxy:
    """Stands between client and server; whatever is switched on holds from the next packet on.

    ``commands`` counts the commands that clients sent (COM_QUIT left out): round trips, that is.
    """

    def __init__(self, target_port: int) -> None:
        self.target_port, self.port = target_port, free_port()
        self.commands = self.connections = 0
        self._lock = threading.Lock()
        self._open = threading.Event()
        self._open.set()
        self._delay = 0.0
        self._reply_bytes: int | None = None
        self._reply_number: int | None = None
        self._links: set[_Link] = set()
        self._listener: socket.socket | None = None
        self._stopped = False
        self._listen()

    # -- faults --------------------------------------------------------------------------------------------------

    def cut_after_reply_bytes(self, count: int) -> None:
        """Once: pass `count` bytes of the server's replies to a client, then end that link."""
        with self._lock:
            self._reply_bytes = count

    def cut_reply_to(self, number: int = 1) -> None:
        """Once: the server executes the `number`-th command from now; its reply is lost and the link ends."""
        with self._lock:
            self._reply_number = number

    def cut_all(self) -> None:
        """End every link that is there now."""
        for link in list(self._links):
            link.end()

    def delay(self, seconds: float) -> None:
        """Each reply comes that much later."""
        self._delay = seconds

    def blackhole(self, *, forget: bool = False) -> None:
        """Swallow everything without a reset; with `forget`, the links of now stay silent even after `heal`."""
        if forget:
            for link in list(self._links):
                link.lost = True
        self._open.clear()

    def refuse(self) -> None:
        """Refuse new connections, end those that are there."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut_all()

    def heal(self) -> None:
        """All faults off."""
        with self._lock:
            self._reply_bytes = self._reply_number = None
        self._delay = 0.0
        self._open.set()
        if self._listener is None and not self._stopped:
            self._listen()

    def stop(self) -> None:
        """The end of the proxy."""
        self._stopped = True
        self._open.set()
        self.refuse()

    def url_for(self, database: MariaDB) -> str:
        """STABILITY_DB_URL by way of this proxy."""
        return database.url_for(self.port)

    # -- the traffic ---------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(256)
        self._listener = listener
        self._run(self._accept, listener)

    def _run(self, target: Callable[..., None], *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True, name="fault-proxy").start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self._run(self._connect, client)

    def _connect(self, client: socket.socket) -> None:
        self._open.wait()
        try:
            server = socket.create_connection(("127.0.0.1", self.target_port), 10)
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
            client.close()
            return
        for side in (client, server):
            side.settimeout(None)
            side.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        self._links.add(link)
        self._run(self._replies, link)
        self._requests(link)

    def _requests(self, link: _Link) -> None:
        """Client to server; finds the packets that begin a command: sequence number 0."""
        pending = bytearray()
        cut = False
        try:
            while data := link.client.recv(65536):
                self._pass_gate(link)
                pending += data
                while len(pending) >= 5 and len(pending) >= 4 + int.from_bytes(pending[:3], "little"):
                    if pending[3] == 0 and pending[4] != 1:
                        cut = self._count_command() or cut
                    del pending[:4 + int.from_bytes(pending[:3], "little")]
                if cut:
                    link.cut = True
                link.server.sendall(data)
        except OSError:
            pass
        finally:
            link.end()

    def _count_command(self) -> bool:
        """True if the reply to this command is to be lost."""
        with self._lock:
            self.commands += 1
            if self._reply_number is None:
                return False
            self._reply_number -= 1
            if self._reply_number:
                return False
            self._reply_number = None
            return True

    def _replies(self, link: _Link) -> None:
        try:
            while data := link.server.recv(65536):
                if link.cut:
                    return
                self._pass_gate(link)
                if self._delay:
                    time.sleep(self._delay)
                with self._lock:
                    room, self._reply_bytes = self._reply_bytes, None
                    if room is not None and room > len(data):
                        self._reply_bytes, room = room - len(data), None
                link.client.sendall(data if room is None else data[:room])
                if room is not None:
                    return
        except OSError:
            pass
        finally:
            link.end()
            self._links.discard(link)
            for side in (link.client, link.server):
                side.close()

    def _pass_gate(self, link: _Link) -> None:
        """Wait while there is a black hole; a link that was forgotten waits until the client gives up."""
        self._open.wait()
        if link.lost:
            with contextlib.suppress(OSError):
                while link.client.recv(65536):
                    pass
            raise OSError("forgotten")


# -- fixtures ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDB]:
    """The server that all tests of a run share."""
    server = MariaDB()
    try:
        yield server
    finally:
        server.destroy()


@pytest.fixture
def mariadb(request: pytest.FixtureRequest) -> Iterator[MariaDB]:
    """The shared server, running and empty; whatever a test did to it is undone. Marks add MySQL and PyMySQL."""
    which = getattr(request, "param", "mariadb")
    server: MariaDB = request.getfixturevalue("mysql_server" if which == "mysql" else "mariadb_server")
    server.scheme = "mysql+pymysql" if which == "pymysql" else "mysql"
    try:
        yield server
    finally:
        server.scheme = "mysql"
        server.thaw()
        server.start()
        server.kill_sessions()
        for (table,) in server.admin("SELECT table_name FROM information_schema.tables WHERE table_schema=%s",
                                     server.name):
            server.admin(f"DROP TABLE IF EXISTS {server.name}.`{table}`")


@contextlib.contextmanager
def full(server: MariaDB) -> Iterator[list[Any]]:
    """The server has no connection left but for root: these have all of them."""
    server.admin("SET GLOBAL max_connections=10")
    hogs: list[Any] = []

    def taken() -> bool:
        with contextlib.suppress(MySQLdb.OperationalError):  # one that has just ended counts for a moment
            hogs.append(server.connect())
        return len(hogs) == 10

    def raised() -> bool:
        with contextlib.suppress(MySQLdb.OperationalError):
            server.admin("SET GLOBAL max_connections=300")
            return True
        return False

    try:
        wait_until(taken, interval=0.01, message="all connections are taken")
        with pytest.raises(MySQLdb.OperationalError, match="1040"):
            server.connect()
        yield hogs
    finally:
        while hogs:
            hogs.pop().close()
        wait_until(raised, message="root gets a connection")


@contextlib.contextmanager
def serving(timeout: float = 0.0, path: str = "/view") -> Iterator[request.RequestRecord]:
    """This thread serves a request meanwhile, with a deadline `timeout` seconds from now; 0 = none."""
    record = request.RequestRecord({"PATH_INFO": path}, time.monotonic_ns(), timeout)
    request.inflight[record.thread_id] = record
    try:
        yield record
    finally:
        for resource in list(record.resources or ()):
            resource.release()
        record.leave()


@pytest.fixture
def make_pool(mariadb: MariaDB) -> Iterator[Callable[..., Pool]]:
    """Make a pool with these STABILITY_DB_ settings, by default to the shared server; closed when the test ends."""
    pools: list[Pool] = []

    def make(**settings: Any) -> Pool:
        settings.setdefault("db_url", mariadb.url)
        pools.append(Pool(Settings(**settings)))
        return pools[-1]

    try:
        yield make
    finally:
        for pool in pools:
            pool.close()


@pytest.fixture
def proxy(mariadb: MariaDB) -> Iterator[FaultProxy]:
    """A proxy in front of the shared server."""
    link = FaultProxy(mariadb.port)
    try:
        yield link
    finally:
        link.stop()
