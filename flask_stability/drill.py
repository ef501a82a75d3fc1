"""The stability test that a team runs against its own app before it goes live.

Starts the app under gunicorn with its own configuration on a free port (or takes a running one), puts an open-loop
load on chosen paths, and in turn kills, freezes and retires workers, sends a storm of bad requests, reloads and, if
allowed, drops the database's connections; then holds what was measured against targets.
``python -m flask_stability.drill app:app`` or ``flask stability drill app:app``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen
from xml.etree import ElementTree

import click
import psutil

from . import scoreboard
from .config import DatabaseAddress, Settings, load_dotenv
from .exceptions import ConfigError, StabilityError
from .loadgen import Load, Result

LOOPBACK = ("127.0.0.1", "localhost", "::1")
STEADY = 2.0  #: seconds that the number of workers stays the same once all are there
TARGETS = {"availability": 0.995, "mean_latency": 0.2, "recovery": 30.0, "restarts": 0.95, "database": 0.99,
           "memory": 1.5}


class DrillError(StabilityError):
    """The drill could not be run."""


class _CannotRun(click.ClickException):
    """Exit status 2, apart from that of targets that were missed."""

    exit_code = 2


@dataclass
class Step:
    """One fault and what it did.

    :ivar availability: share of requests answered well from the fault to the end of its time.
    :ivar recovery: seconds from the fault to the last failed request, 0 if none failed.
    :ivar restored: all workers were back at the end.
    """

    name: str
    requests: int = 0
    failed: int = 0
    availability: float = 1.0
    recovery: float = 0.0
    restored: bool = True
    errors: dict[str, int] = field(default_factory=dict)


@dataclass
class Verdict:
    """One figure against its target."""

    figure: str
    measured: str
    target: str
    passed: bool | None


@dataclass
class Report:
    """The whole drill."""

    steps: list[Step]
    verdicts: list[Verdict]

    @property
    def passed(self) -> bool:
        """No target was missed."""
        return all(verdict.passed is not False for verdict in self.verdicts)

    def as_json(self) -> str:
        """Everything, for machines."""
        return json.dumps({"passed": self.passed, "steps": [asdict(step) for step in self.steps],
                           "verdicts": [asdict(verdict) for verdict in self.verdicts]}, indent=2)

    def as_junit(self) -> str:
        """One test case per figure, for CI."""
        suite = ElementTree.Element("testsuite", name="flask stability drill", tests=str(len(self.verdicts)),
                                    failures=str(sum(verdict.passed is False for verdict in self.verdicts)))
        for verdict in self.verdicts:
            case = ElementTree.SubElement(suite, "testcase", classname="drill", name=verdict.figure)
            if verdict.passed is False:
                ElementTree.SubElement(case, "failure", message=f"{verdict.measured}, target {verdict.target}")
            elif verdict.passed is None:
                ElementTree.SubElement(case, "skipped", message=verdict.measured)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True)


class Service:
    """The service under test: a master process and its workers."""

    def __init__(self, url: str, pid: int) -> None:
        self.url, self.master = url, psutil.Process(pid)
        self.size = 0

    def workers(self) -> list[psutil.Process]:
        """The live workers, oldest first."""
        found = []
        for process in self.master.children():
            with contextlib.suppress(psutil.Error):
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def oldest(self) -> psutil.Process:
        """The worker that faults are done to.

        :raises DrillError: if there is none.
        """
        workers = self.workers()
        if not workers:
            raise DrillError("the service has no worker left: see its log")
        return workers[0]

    def thaw(self) -> None:
        """Whatever was stopped goes on."""
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                process.resume()

    def memory(self) -> int:
        """Bytes resident in all workers."""
        total = 0
        for process in self.workers():
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def count(self) -> None:
        """Learn how many workers there are, once that number has been the same for a while: the first may serve before
        the last was forked.
        """
        deadline = time.monotonic() + 30
        same_since = time.monotonic()
        while time.monotonic() < min(deadline, same_since + STEADY):
            time.sleep(0.1)
            number = len(self.workers())
            if number != self.size or not number:
                self.size, same_since = number, time.monotonic()

    def settle(self, seconds: float = 30.0) -> bool:
        """Wait until as many workers are there as at the start, none of them stopped."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            workers = self.workers()
            if len(workers) == self.size and self.answers():
                return True
            time.sleep(0.1)
        return False

    def answers(self) -> bool:
        """Whether anything is answered at all."""
        try:
            with urlopen(self.url + "/", timeout=5) as answer:
                return bool(answer.status)
        except URLError as error:
            return hasattr(error, "code")
        except OSError:
            return False


@contextlib.contextmanager
def started(app: str | None, config: str | None, directory: str) -> Iterator[Service]:
    """The app under gunicorn on a free port of the loopback interface; ended afterwards.

    :raises DrillError: with the end of its log, if it does not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    if config is not None or not Path(directory, "gunicorn.conf.py").exists():
        command += ["-c", config or "python:flask_stability.server.conf"]
    command += [app] if app else []
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, env={**os.environ, "SERVER_PORT": str(port)})
        try:
            service = Service(f"http://127.0.0.1:{port}", process.pid)
            deadline = time.monotonic() + 60
            while not (service.workers() and service.answers()):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise DrillError("the service does not start:\n" + "".join(log.readlines()[-15:]))
                time.sleep(0.1)
            yield service
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the service's whole group: politely, then not."""
    process.terminate()
    try:
        process.wait(40)
    except subprocess.TimeoutExpired:
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# -- faults ------------------------------------------------------------------------------------------------------


def kill_worker(service: Service) -> None:
    """SIGKILL, as the kernel does when memory is gone."""
    service.oldest().kill()


def kill_all_workers(service: Service) -> None:
    """All workers at once."""
    for process in service.workers():
        process.kill()


def freeze_worker(service: Service) -> None:
    """SIGSTOP: a worker that neither answers nor dies."""
    service.oldest().suspend()


def segfault_worker(service: Service) -> None:
    """SIGSEGV, as a broken C extension does."""
    service.oldest().send_signal(signal.SIGSEGV)


def retire_worker(service: Service) -> None:
    """SIGTERM: a worker leaves in good order."""
    service.oldest().terminate()


def reload(service: Service) -> None:
    """SIGHUP to the master: new workers, new code."""
    service.master.send_signal(signal.SIGHUP)


def bad_requests(service: Service) -> None:
    """200 malformed requests."""
    parts = urlsplit(service.url)
    junk = (b"GARBAGE\r\n\r\n", b"GET /%0a%0d HTTP/1.1\r\nHost: x\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1\r\n\r\n{",
            b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nX: " + b"a" * 20000 + b"\r\n\r\n")
    for number in range(200):
        with contextlib.suppress(OSError), socket.create_connection((parts.hostname, parts.port), 5) as link:
            link.sendall(junk[number % len(junk)])


def drop_database_connections(_: Service) -> None:
    """KILL every connection of the service's database user but our own."""
    address = _database()
    assert address is not None
    import MySQLdb

    link = MySQLdb.connect(host=address.host, port=address.port, user=address.user, password=address.password,
                           database=address.name, connect_timeout=5)
    try:
        cursor = link.cursor()
        cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s AND id <> CONNECTION_ID()",
                       (address.user,))
        for (number,) in cursor.fetchall():
            with contextlib.suppress(MySQLdb.Error):
                cursor.execute("KILL %s", (number,))
    finally:
        link.close()


def _database() -> DatabaseAddress | None:
    """Where the service's MySQL or MariaDB is, from the environment."""
    url = Settings.from_environ().db_url
    return DatabaseAddress.from_url(url) if url and not url.startswith("sqlite") else None


FAULTS: tuple[tuple[str, Callable[[Service], None]], ...] = (
    ("worker killed", kill_worker), ("worker crashes (SIGSEGV)", segfault_worker),
    ("all workers killed", kill_all_workers), ("worker retired", retire_worker), ("worker frozen", freeze_worker),
    ("storm of bad requests", bad_requests), ("reload", reload))


# -- the drill ---------------------------------------------------------------------------------------------------


def run(service: Service, paths: Sequence[str], *, rate: float, seconds: float, database: bool = False,
        progress: Callable[[str], None] = lambda _: None) -> Report:
    """All faults in turn under load.

    :param rate: requests a second.
    :param seconds: observed after each fault, at least; longer if the workers are not back by then (at most 60).
    """
    service.count()
    faults = [*FAULTS, *([("database connections dropped", drop_database_connections)] if database else [])]
    load = Load(service.url, paths, rate).start()
    steps, windows = [], []
    try:
        progress("steady load")
        time.sleep(seconds)
        before = service.memory()
        for name, fault in faults:
            progress(name)
            at = time.monotonic()
            fault(service)
            time.sleep(seconds)
            step = Step(name, restored=service.settle(60))
            steps.append(step)
            windows.append((at, time.monotonic()))
        after = service.memory()
    finally:
        service.thaw()
        result = load.stop()
    for step, (start, end) in zip(steps, windows, strict=True):
        part = result.between(start, end)
        last = part.last_failure()
        step.requests, step.failed, step.availability = part.total, part.failed, part.availability
        step.recovery, step.errors = (last - start if last is not None else 0.0), part.errors()
    return Report(steps, _verdicts(steps, result, after / before if before else 1.0, database))


def _verdicts(steps: list[Step], result: Result, growth: float, database: bool) -> list[Verdict]:
    recovery = max((step.recovery for step in steps), default=0.0)
    restored = sum(step.restored for step in steps) / len(steps)
    link = next((step.availability for step in steps if step.name.startswith("database")), 1.0)
    target = TARGETS
    few = result.total * (1 - target["availability"]) < 1  # a single failure would decide
    return [
        Verdict("availability", f"{result.availability:.3%} of {result.total}" + (": too few to tell" if few else ""),
                f"> {target['availability']:.1%}", None if few else result.availability > target["availability"]),
        Verdict("mean response time", f"{result.mean * 1000:.1f} ms", f"< {target['mean_latency'] * 1000:.0f} ms",
                result.mean < target["mean_latency"]),
        Verdict("recovery", f"{recovery:.1f} s", f"< {target['recovery']:.0f} s", recovery < target["recovery"]),
        Verdict("restarts", f"{restored:.0%}", f"> {target['restarts']:.0%}", restored > target["restarts"]),
        Verdict("database connections", f"{link:.2%}" if database else "not tried", f"> {target['database']:.0%}",
                link > target["database"] if database else None),
        Verdict("memory, end / start", f"{growth:.2f}", f"< {target['memory']:.1f}", growth < target["memory"]),
    ]


FAULT_HEADS = ("fault", "requests", "failed", "availability", "recovery", "workers back", "failures")
TARGET_HEADS = ("figure", "measured", "target", "")


def _fault_lines(report: Report) -> list[tuple[str, ...]]:
    return [(step.name, str(step.requests), str(step.failed), f"{step.availability:.2%}", f"{step.recovery:.1f} s",
             "yes" if step.restored else "NO", ", ".join(f"{count} × {name}" for name, count in step.errors.items()))
            for step in report.steps]


def _target_lines(report: Report) -> list[tuple[str, ...]]:
    marks = {True: "passed", False: "MISSED", None: "–"}
    return [(verdict.figure, verdict.measured, verdict.target, marks[verdict.passed]) for verdict in report.verdicts]


def show(report: Report) -> None:
    """Two tables for a person; in plain text where rich is not installed."""
    for title, heads, lines in (("Faults", FAULT_HEADS, _fault_lines(report)),
                                ("Targets", TARGET_HEADS, _target_lines(report))):
        try:
            _rich_table(title, heads, lines)
        except ImportError:
            click.echo(f"{title}\n" + "\n".join("  ".join(line).rstrip() for line in (heads, *lines)) + "\n")


def _rich_table(title: str, heads: Sequence[str], lines: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for head in heads:
        table.add_column(head)
    colours = {"passed": "[green]passed", "MISSED": "[red]MISSED"}
    for line in lines:
        table.add_row(*(colours.get(cell, cell) for cell in line))
    console = Console()
    if not console.is_terminal:
        console.width = 160  # a CI server's log
    console.print(table)


@contextlib.contextmanager
def _display(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Tells what is being done: live with rich, else line by line."""
    if quiet:
        yield lambda text: None
        return
    try:
        from rich.console import Console

        live = sys.stderr.isatty()
    except ImportError:
        live = False
    if not live:
        yield lambda text: click.echo(f"{text} …", err=True)
        return
    with Console(stderr=True).status("starting") as status:
        yield lambda text: status.update(f"{text} …")


def _master(run_dir: str | None) -> int:
    """The master's process id, by its scoreboard.

    :raises DrillError: if there is none, or more than one.
    """
    folder = run_dir or Settings.from_environ().run_dir or scoreboard.default_run_dir() or ""
    pids = [pid for pid, _ in scoreboard.board_files(folder) if psutil.pid_exists(pid)]
    if len(pids) != 1:
        found = f"several: {', '.join(map(str, pids))}" if pids else "none"
        raise DrillError(f"one running service has to have its scoreboard in {folder}, found {found}: name the "
                         "directory with --run-dir, or the master's process id with --pid")
    return pids[0]


@click.command("drill")
@click.argument("app", required=False)
@click.option("-c", "--config", help="gunicorn's configuration file (default: gunicorn.conf.py, else ours).")
@click.option("--url", help="A running service instead of APP.")
@click.option("--pid", type=int, help="Process id of its master.")
@click.option("--run-dir", metavar="DIR", help="Where its scoreboard is, in place of --pid; STABILITY_RUN_DIR.")
@click.option("--path", "paths", multiple=True, default=["/"], show_default=True, help="Path to ask; repeat for more.")
@click.option("--rate", type=click.FloatRange(0.1, 10000), default=50.0, show_default=True, help="Requests a second.")
@click.option("--seconds", type=click.FloatRange(1, 600), default=6.0, show_default=True,
              help="Observed after each fault.")
@click.option("--database", is_flag=True, help="Also drop the database's connections (MySQL, MariaDB).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--junit", type=click.Path(dir_okay=False), help="Write a JUnit file.")
@click.option("--anywhere", is_flag=True, help="Allow an address beyond this machine's loopback interface.")
def drill_command(app: str | None, config: str | None, url: str | None, pid: int | None, run_dir: str | None,
                  paths: tuple[str, ...], rate: float, seconds: float, database: bool, as_json: bool, junit: str | None,
                  anywhere: bool) -> None:
    """Test the stability of APP (as gunicorn names it, such as app:app) under faults.

    Exit status: 0 every target was met, 1 one was missed, 2 the drill could not be run.
    """
    if (pid or run_dir) and not url:
        raise click.UsageError("--pid and --run-dir say whose --url it is: give that too")
    if url and urlsplit(url).hostname not in LOOPBACK and not anywhere:
        raise click.UsageError(f"{url} is not on this machine: workers are killed there; add --anywhere if you mean it")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # as Ctrl-C: what was begun is ended
    try:
        load_dotenv()
        if database and _database() is None:
            raise click.UsageError("--database needs a MySQL or MariaDB in STABILITY_DB_URL")
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(_display(as_json))
            if url:
                service = Service(url.rstrip("/"), pid or _master(run_dir))
            else:
                service = stack.enter_context(started(app, config, os.getcwd()))
            report = run(service, paths, rate=rate, seconds=seconds, database=database, progress=progress)
    except (DrillError, ConfigError, psutil.Error) as error:
        raise _CannotRun(str(error)) from error
    if junit:
        try:
            Path(junit).write_text(report.as_junit(), encoding="utf-8")
        except OSError as error:
            raise _CannotRun(f"--junit {junit}: {error.strerror}") from error
    if as_json:
        click.echo(report.as_json())
    else:
        show(report)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    drill_command()
