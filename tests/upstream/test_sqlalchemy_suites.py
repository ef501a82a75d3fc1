"""SQLAlchemy's and Flask-SQLAlchemy's own test suites, from their source distributions, on `StabilityPool`.

SQLAlchemy's tests of its pool run with the installed version and with the lowest that setup.cfg allows, its dialect
compliance suite on MariaDB with the installed one, Flask-SQLAlchemy's suite with the lowest. Of the compliance suite
only what executes, commits and fetches is run; ``STABILITY_TEST_COMPLIANCE=whole`` runs all of it.
"""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from support import ROOT, cached_source
from support_db import MariaDB

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

#: Tests of the pool that hold for a QueuePool alone, and why.
OF_A_QUEUE = {
    "PoolTest::test_rec_info":
        "an entry of ours ends with its connection: record_info begins anew after an invalidation",
    "QueuePoolTest::test_recycle_on_soft_invalidate":
        "the same: the test wants the very entry again with another connection in it",
    "QueuePoolTest::test_invalidate_close_interrupted":
        "the same: the test counts an entry without a connection as idle",
    "QueuePoolTest::test_reset_interrupted_detaches_fairy":
        "the same",
    "QueuePoolTest::test_dispose_closes_pooled":
        "what is in use at dispose() is closed when it comes back; a QueuePool that was disposed of uses it again",
    "QueuePoolTest::test_hanging_connect_within_overflow":
        "the test's creator tells its callers apart by their threads; ours opens connections in threads of the pool",
}
#: With newer versions of SQLAlchemy some of Flask-SQLAlchemy's tests fail by themselves.
LOWEST = dict(line.split("==") for line in (ROOT / "tests/minimum.txt").read_text().splitlines() if "==" in line)
#: Of the compliance suite: what executes, commits, rolls back, sets isolation levels and streams.
CONNECTIONS = ("test_dialect.py", "test_results.py", "test_insert.py", "test_rowcount.py", "test_update_delete.py",
               "test_ddl.py")


@pytest.fixture(params=["newest", "lowest"])
def sqlalchemy(request: pytest.FixtureRequest) -> tuple[str, list[Path]]:
    """A version of SQLAlchemy, and where it is installed beside this environment."""
    return (version("sqlalchemy"), []) if request.param == "newest" else _lowest()


def _lowest() -> tuple[str, list[Path]]:
    number = LOWEST["SQLAlchemy"]
    installed = cached_source("SQLAlchemy", number) / "installed"
    if not installed.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", f"{installed}.new",
                        f"SQLAlchemy=={number}"], check=True, timeout=300)
        Path(f"{installed}.new").rename(installed)
    return number, [installed]


def _run(source: Path, path: list[Path], *arguments: str) -> tuple[int, set[str]]:
    """Run tests of it with our plugin: how many passed, and which did not, tried a second time.

    Some of SQLAlchemy's are timed by short sleeps: a busy machine is too slow for them.
    """
    output = _pytest(source, path, *arguments)
    passed, checkouts = (re.search(pattern, output) for pattern in (r"(\d+) passed", r"StabilityPool: (\d+) checkouts"))
    assert passed, output[-4000:]
    assert checkouts, output[-4000:]
    assert int(checkouts[1]) > 200, output[-2000:]
    failed = _failed(output)
    if 0 < len(failed) < 30:
        print(output[-4000:])
        options = itertools.takewhile(lambda one: one != "-k", arguments[1:])
        failed = _failed(_pytest(source, path, *failed, *options))
    return int(passed[1]), {name.partition("::")[2] for name in failed}


def _pytest(source: Path, path: list[Path], *arguments: str) -> str:
    search = os.pathsep.join(map(str, [*path, ROOT, Path(__file__).parent]))
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "pool_plugin", "-p", "no:cacheprovider", "-rfE",
                           "--timeout=120", *arguments], cwd=source, env={**os.environ, "PYTHONPATH": search},
                          capture_output=True, text=True, timeout=800)
    return done.stdout + done.stderr


def _failed(output: str) -> list[str]:
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)


def test_sqlalchemys_tests_of_the_pool(sqlalchemy: tuple[str, list[Path]]) -> None:
    """All that hold for any pool pass; those that do not are named above."""
    number, path = sqlalchemy
    passed, failed = _run(cached_source("SQLAlchemy", number), path, "test/engine/test_pool.py")
    assert {name.partition("[")[0] for name in failed} <= set(OF_A_QUEUE)
    assert passed > 110


def test_sqlalchemys_compliance_suite_on_mariadb() -> None:
    """It passes without an exception."""
    server = MariaDB("--character-set-server=utf8mb4")
    try:
        for name in ("test", "test_schema"):
            server.admin(f"CREATE DATABASE {name}")
        server.admin(f"GRANT ALL ON *.* TO {server.user}@'%'")
        address = f"{server.user}:{server.password}@127.0.0.1:{server.port}/test?charset=utf8mb4"
        whole = os.environ.get("STABILITY_TEST_COMPLIANCE") == "whole"
        source = cached_source("SQLAlchemy", version("sqlalchemy"))
        chosen = [] if whole else ["-k", " or ".join(_classes(source))]
        passed, failed = _run(source, [], "test/dialect/test_suite.py", "--dburi", f"mariadb+mysqldb://{address}",
                              *chosen)
    finally:
        server.destroy()
    assert not failed
    assert passed > (1500 if whole else 200)


def _classes(source: Path) -> list[str]:
    suite = source / "lib" / "sqlalchemy" / "testing" / "suite"
    return [name for file in CONNECTIONS
            for name in re.findall(r"^class (\w+Test)\b", (suite / file).read_text(), re.MULTILINE)]


def test_flask_sqlalchemys_own_suite() -> None:
    """All of it passes."""
    _, path = _lowest()
    passed, failed = _run(cached_source("Flask-SQLAlchemy", version("flask-sqlalchemy")), path, "tests")
    assert not failed
    assert passed > 400
