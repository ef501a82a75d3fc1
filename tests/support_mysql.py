"""MySQL itself beside MariaDB, and PyMySQL beside mysqlclient: the same tests for all of them, where so marked."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support_db import MariaDB

_GET = Path(__file__).with_name("get_mysql")
#: Makes a test fail, and not only skip, where MySQL cannot be had.
REQUIRED = "STABILITY_TEST_MYSQL"
_MISSING = "MySQL itself cannot be had"
_OPTIONS = ("--skip-name-resolve", "--skip-log-bin", "--performance-schema=OFF", "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=2", "--innodb-redo-log-capacity=32M",
            "--innodb-lock-wait-timeout=50", "--bind-address=127.0.0.1", "--max-connections=300", "--mysqlx=OFF",
            "--secure-file-priv=")


class MySQL(MariaDB):
    """MySQL in the place of MariaDB, from the folder that tests/get_mysql unpacks, run with that folder's own libc."""

    product = "MySQL"

    def __init__(self, *options: str) -> None:
        self.folder = _folder()
        super().__init__(*options)

    def _program(self) -> list[str]:
        loader = next((self.folder / "usr/lib").glob("*-linux-gnu*/ld-linux*.so.*"))
        return [str(loader), "--library-path", f"{loader.parent}:{self.folder}/usr/lib/mysql/private",
                f"{self.folder}/usr/sbin/mysqld", "--no-defaults", f"--basedir={self.folder}/usr",
                f"--lc-messages-dir={self.folder}/usr/share/mysql", f"--plugin-dir={self.folder}/usr/lib/mysql/plugin"]

    def _install(self, *who_and_where: str) -> list[str]:
        return [*self._program(), "--initialize-insecure", *_OPTIONS, *who_and_where]

    def _serve(self, *who_and_where: str) -> list[str]:
        return [*self._program(), *_OPTIONS, "--innodb-fast-shutdown=2", *who_and_where]


def _folder() -> Path:
    """Where MySQL is unpacked; downloads it.

    :raises pytest.skip.Exception: where it cannot be had; a failure where the environment asks for it.
    """
    done = subprocess.run([str(_GET)], capture_output=True, text=True, timeout=900)
    if done.returncode == 0:
        return Path(done.stdout.strip())
    reason = f"{_MISSING}: {done.stderr.strip()[-500:]}"
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[MySQL]:
    """The MySQL that all tests of a run share."""
    server = MySQL()
    try:
        yield server
    finally:
        server.destroy()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses `mariadb` against MySQL and by PyMySQL as well, where a test or its module asks for it."""
    marked = metafunc.definition.get_closest_marker
    others = [name for name, asked, refused in (("mysql", "mysql_too", "mariadb_only"),
                                                ("pymysql", "pymysql_too", "mysqlclient_only"))
              if marked(asked) is not None and marked(refused) is None]
    if "mariadb" in metafunc.fixturenames and others:
        metafunc.parametrize("mariadb", ["mariadb", *(pytest.param(name, marks=pytest.mark.long) for name in others)],
                             indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the live tests of MySQL and PyMySQL with gthread alone: the server's part in them is the same under both."""
    def both(item: pytest.Item) -> bool:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        return parameters.get("mariadb") in ("mysql", "pymysql") and parameters.get("worker_class") == "sync"

    left = [item for item in items if both(item)]
    if left:
        items[:] = [item for item in items if not both(item)]
        config.hook.pytest_deselected(items=left)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly what was not run."""
    left_out = [report for report in terminalreporter.stats.get("skipped", []) if _MISSING in str(report.longrepr)]
    if left_out:
        terminalreporter.section("NOT TESTED AGAINST MYSQL ITSELF", red=True, bold=True)
        terminalreporter.line(f"{len(left_out)} tests were skipped. {left_out[0].longrepr[-1]}", red=True)
