"""PEP 249: the compliance suite of mysqlclient's own source distribution, run on connections of the pool.

The suite is read from the package index in the test run, in the version of mysqlclient that is installed.
"""

from __future__ import annotations

import importlib
import sys
import unittest
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from types import ModuleType
from typing import Any

import pytest

from flask_stability.config import Settings
from flask_stability.database import Pool
from support import source_distribution
from support_db import MariaDB

pytestmark = pytest.mark.mysql_too


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """mysqlclient's ``tests/test_MySQLdb_dbapi20.py``."""
    folder = tmp_path_factory.mktemp("mysqlclient")
    path = str(source_distribution(folder, f"mysqlclient=={version('mysqlclient')}") / "tests")
    before = set(sys.modules)
    sys.path.insert(0, path)
    try:
        with warnings.catch_warnings():  # the suite changes the filters
            yield importlib.import_module("test_MySQLdb_dbapi20")
    finally:
        sys.path.remove(path)
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "") or "").startswith(path):
                del sys.modules[name]


def _run(suite: ModuleType, connect: Any, *, twice: bool = False) -> unittest.TestResult:
    """The suite's result on these connections.

    :param twice: a second `close` does no harm. The suite wants an error, which later editions of it took back ("Issue
        discussed on DB-SIG: consensus seem that close() should not raised if called on closed objects").
    """
    class Case(suite.test_MySQLdb):  # type: ignore[misc, name-defined]
        def _connect(self) -> Any:
            return connect()

        def test_close(self) -> None:
            connection = connect()
            cursor = connection.cursor()
            connection.close()
            with pytest.raises(self.driver.Error):
                self.executeDDL1(cursor)
            with pytest.raises(self.driver.Error):
                connection.commit()
            connection.close()

    if not twice:
        del Case.test_close

    result = unittest.TestResult()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the suite: it drops tables that are not there
        unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    return result


@pytest.mark.long
def test_the_pooled_connection_passes_what_the_driver_s_own_passes(suite: ModuleType, mariadb: MariaDB) -> None:
    """Each test of the suite; none is left out that the driver itself passes on this server."""
    mode = "SET sql_mode = 'ANSI,STRICT_TRANS_TABLES,TRADITIONAL'"
    pool = Pool(Settings(db_url=mariadb.url, db_max_size=4, db_max_idle=4, db_autocommit=False))

    def ours() -> Any:
        connection = pool.connection()
        connection.cursor().execute(mode)
        return connection

    def plain() -> Any:
        connection = mariadb.connect(autocommit=False)
        connection.cursor().execute(mode)
        return connection

    try:
        own, pooled = _run(suite, plain), _run(suite, ours, twice=True)
        assert pool.stats()["pool_in_use"] == 0
    finally:
        pool.close()
    print(f"driver: {own}; pool: {pooled}")
    assert pooled.testsRun == own.testsRun > 30
    broken = [f"{case.id()}\n{text}" for case, text in pooled.failures + pooled.errors]
    assert not broken, "\n\n".join(broken)
    assert not own.failures + own.errors
    assert len(pooled.skipped) == len(own.skipped)


def test_the_module_s_exceptions_are_the_driver_s(mariadb: MariaDB) -> None:
    """PEP 249's optional extension: they are attributes of the connection, of the pooled one too."""
    import MySQLdb

    pool = Pool(Settings(db_url=mariadb.url))
    try:
        with pool.connection() as connection:
            for name in ("Error", "Warning", "InterfaceError", "DatabaseError", "OperationalError", "IntegrityError",
                         "InternalError", "ProgrammingError", "NotSupportedError", "DataError"):
                assert getattr(connection, name) is getattr(MySQLdb, name)
    finally:
        pool.close()
