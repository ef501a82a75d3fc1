"""What differs between the databases: errors, parameters, connecting, interrupting."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import MySQLdb
import pytest

from flask_stability.config import Settings
from flask_stability.database.drivers import make_driver
from flask_stability.database.pool import Pool
from flask_stability.database.sqlite import _translated, translate
from flask_stability.database.statements import CLEAN, SESSION, TRANSACTION, effect_of, known, stays_within
from flask_stability.database.transaction import Transactions
from flask_stability.dberrors import CODES, CONSEQUENCES, ErrorClass, means_unavailable, mysql_class, table
from flask_stability.exceptions import ConfigError, DatabaseUnavailable
from support import wait_until
from support_db import MariaDB


@pytest.mark.parametrize(("codes", "expected"), [
    ((2002, 2003, 2005, 2012, 1043, 1053, 9001, 9002), ErrorClass.CONNECT),
    ((1040, 1203, 1226, 1135, 9501), ErrorClass.FULL),
    ((3032, 3100, 3783, 3799), ErrorClass.NOT_READY),
    ((1153, 2020), ErrorClass.TOO_LARGE),
    ((2014,), ErrorClass.OUT_OF_STEP),
    ((1037, 1041, 3015, 1206, 1637), ErrorClass.MEMORY),
    ((3159, 1698, 1862, 3118, 2059, 2061), ErrorClass.REFUSED),
    ((1044, 1045, 1049, 1129, 1130), ErrorClass.REFUSED),
    ((1213, 3101), ErrorClass.ROLLED_BACK),
    ((1205, 1412, 3572, 3058), ErrorClass.LOCK_WAIT),
    ((1836,), ErrorClass.READ_ONLY),
    ((1021, 1114, 3884), ErrorClass.DISK),
    ((1046, 1792, 9005, 9006), ErrorClass.STALE),
    ((2006, 2013, 2055, 1927, 4031), ErrorClass.LINK_LOST),
    ((1969, 3024, 1317), ErrorClass.TIMED_OUT),
    ((1054, 1062, 1146, 0, "text"), ErrorClass.OTHER)])
def test_errors_of_mysql(codes: tuple[Any, ...], expected: ErrorClass) -> None:
    """Each number of the table means what the table says."""
    assert {mysql_class(MySQLdb.OperationalError(code, "…")) for code in codes} == {expected}


@pytest.mark.parametrize(("code", "text", "expected"), [
    (1047, "WSREP has not yet prepared node for application use", ErrorClass.NOT_READY),
    (1047, "Unknown command", ErrorClass.OTHER),
    (1226, "User 'a' has exceeded the 'max_user_connections' resource (current value: 1)", ErrorClass.FULL),
    (1226, "User 'a' has exceeded the 'max_connections_per_hour' resource (current value: 1)", ErrorClass.QUOTA),
    (1226, "User 'a' has exceeded the 'max_queries_per_hour' resource (current value: 1)", ErrorClass.QUOTA),
    (1226, "Resultset row limit exceeded", ErrorClass.OTHER),
    (1792, "Cannot execute statement in a READ ONLY transaction", ErrorClass.STALE),
    (1792, "Causal read timed out while in a read-only transaction, cannot retry command.", ErrorClass.LOCK_WAIT),
    (1907, "Query execution was interrupted, query_timeout exceeded", ErrorClass.TIMED_OUT),
    (1907, "This is not yet supported for generated columns", ErrorClass.OTHER),
    (1040, "Too many connections", ErrorClass.FULL),
    (1040, "User 'a' can only connect locally", ErrorClass.REFUSED),
    (1045, "Access denied for user 'a'@'b' (using password: YES)", ErrorClass.REFUSED),
    (1045, "Command not supported", ErrorClass.OTHER),
    (1045, "#28000 Proxy ERROR:connect to backend error", ErrorClass.CONNECT),
    (4167, "Connections using insecure transport are prohibited while --require_secure_transport=ON.",
     ErrorClass.REFUSED),
    (4167, "Running recursive calls to SQL execution service is not supported", ErrorClass.OTHER),
    (4094, "All queries have been blocked while function 'group_replication_set_as_primary()' is executing.",
     ErrorClass.NOT_READY),
    (1016, "Can't open file: './app/t.frm' (errno: 24 \"Too many open files\")", ErrorClass.MEMORY),
    (1180, "Got error 28 - 'No space left on device' during COMMIT", ErrorClass.DISK),
    (2026, "TLS/SSL error: self-signed certificate in certificate chain", ErrorClass.REFUSED),
    (2026, "SSL connection error: unexpected eof while reading", ErrorClass.CONNECT),
    (4031, "The client was disconnected by the server because of inactivity.", ErrorClass.LINK_LOST),
    (4031, "Referenced trigger 't' for the given action time and event type does not exist", ErrorClass.OTHER),
    (4151, "Access denied, this account is locked", ErrorClass.REFUSED)])
def test_numbers_that_mean_two_things(code: int, text: str, expected: ErrorClass) -> None:
    """MySQL and MariaDB, or two cases of one of them, share it: the text decides."""
    assert mysql_class(MySQLdb.OperationalError(code, text)) is expected


def test_the_table_decides_each_number_once_and_each_class_whole() -> None:
    """No number stands twice, no class is without consequences, and docs/database.rst shows all of it."""
    codes = [code for group in CODES.values() for code in group]
    assert len(codes) == len(set(codes))
    assert set(CONSEQUENCES) == set(ErrorClass)
    text = (Path(__file__).parents[2] / "docs" / "database.rst").read_text()
    assert text.partition(".. errors begin")[2].partition(".. errors end")[0].strip() == table().strip()


def test_a_user_with_no_connection_left_is_waited_for(mariadb: MariaDB) -> None:
    """1226 by max_user_connections: a connection comes as soon as there is room, as with 1203."""
    mariadb.admin("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 1")
    pool = Pool(Settings(db_url=mariadb.url, db_timeout=30.0))
    try:
        timer = threading.Timer(0.5, mariadb.connect().close)
        timer.start()
        with pool.connection() as connection:
            connection.execute("SELECT 1")
        timer.join()
        assert pool.stats()["connections_errors"] > 0
        assert pool.availability.breaker.state == "closed"
    finally:
        pool.close()
        mariadb.admin("ALTER USER app@'%' WITH MAX_USER_CONNECTIONS 0")


def test_a_statement_that_is_too_large_is_not_sent(mariadb: MariaDB) -> None:
    """The server would hang up, which looks like a lost link: 500, once, and the connection is as good as before."""
    mariadb.admin("CREATE TABLE app.t (a LONGBLOB)")
    packet = mariadb.admin("SELECT @@max_allowed_packet")[0][0]
    pool = Pool(Settings(db_url=mariadb.url))
    runs = []
    frame = len("INSERT INTO t VALUES ('')") + 1

    def unit(connection: Any) -> None:
        runs.append(1)
        with pytest.raises(MySQLdb.OperationalError) as caught:
            connection.execute("INSERT INTO t VALUES (%s)", ("x" * (packet - frame + 1),))
        assert caught.value.args[0] == 1153
        assert not means_unavailable(caught.value)
        assert "max_allowed_packet" in caught.value.__notes__[0]
        connection.execute("INSERT INTO t VALUES (%s)", ("x" * (packet - frame - 1),))  # the largest that is taken

    Transactions(lambda: pool)(unit)()
    assert runs == [1]
    assert mariadb.admin("SELECT COUNT(*) FROM app.t") == [(1,)]
    stats = pool.stats()
    assert (stats["connections_num"], stats["connections_lost"], stats["retries_num"]) == (1, 0, 0)
    assert pool.inventory.generation == 0
    pool.close()


def test_1290_is_read_only_only_if_it_says_so() -> None:
    """The same number stands for every option that forbids a statement."""
    assert mysql_class(MySQLdb.OperationalError(1290, "with the --read-only option")) is ErrorClass.READ_ONLY
    assert mysql_class(MySQLdb.OperationalError(1290, "with the --skip-grant-tables option")) is ErrorClass.OTHER
    assert mysql_class(MySQLdb.OperationalError()) is ErrorClass.OTHER


def test_1030_is_a_full_disk_only_if_the_system_said_so() -> None:
    """It carries the operating system's number."""
    full = 'Got error 28 "No space left on device" from storage engine InnoDB'
    assert mysql_class(MySQLdb.OperationalError(1030, full)) is ErrorClass.DISK
    other = 'Got error 194 "Tablespace is missing for a table" from storage engine InnoDB'
    assert mysql_class(MySQLdb.OperationalError(1030, other)) is ErrorClass.OTHER


def test_a_full_table_of_the_server_itself_has_a_remedy(mariadb: MariaDB) -> None:
    """1114, as a full disk gives it: the database cannot be had for this, and what can be done is said."""
    pool = Pool(Settings(db_url=mariadb.url))
    with pool.connection() as connection:
        connection.execute("SET SESSION max_heap_table_size = 16384")
        connection.execute("CREATE TEMPORARY TABLE small (a CHAR(250)) ENGINE=MEMORY")
        with pytest.raises(MySQLdb.OperationalError, match="full") as caught:
            for _ in range(1000):
                connection.execute("INSERT INTO small VALUES ('x')")
    assert pool.driver.classify(caught.value) is ErrorClass.DISK
    assert means_unavailable(caught.value)
    assert "make room" in caught.value.__notes__[0]
    pool.close()


def test_the_server_itself_agrees(mariadb: MariaDB) -> None:
    """Wrong password, missing database and a read-only server are told apart from a server that is gone."""
    def failure(**options: Any) -> BaseException:
        with pytest.raises(MySQLdb.Error) as caught:
            mariadb.connect(**options)
        return caught.value

    assert mysql_class(failure(password="wrong")) is ErrorClass.REFUSED
    assert mysql_class(failure(database="missing")) is ErrorClass.REFUSED
    assert mysql_class(failure(port=1)) is ErrorClass.CONNECT
    mariadb.admin("CREATE TABLE app.t (a INT)")
    mariadb.admin("SET GLOBAL read_only=ON")
    try:
        with pytest.raises(MySQLdb.Error) as caught:
            mariadb.connect().cursor().execute("INSERT INTO t VALUES (1)")
    finally:
        mariadb.admin("SET GLOBAL read_only=OFF")
    assert mysql_class(caught.value) is ErrorClass.READ_ONLY
    assert means_unavailable(caught.value)
    assert not means_unavailable(MySQLdb.OperationalError(1054, "…"))
    assert not means_unavailable(ValueError())


@pytest.mark.parametrize(("sql", "expected"), [
    ("SELECT %s, %s", "SELECT ?, ?"),
    ("SELECT '%s', \"%s\", `%s`, %s", "SELECT '%s', \"%s\", `%s`, ?"),
    ("SELECT 'it''s %s', %s -- %s\n, %s", "SELECT 'it''s %s', ? -- %s\n, ?"),
    ("SELECT /* %s */ %(name)s", "SELECT /* %s */ :name"),
    ("SELECT 7 %% %s, '50%%'", "SELECT 7 % ?, '50%'")])
def test_parameters_for_sqlite(sql: str, expected: str) -> None:
    """mysqlclient's placeholders become SQLite's, outside of literals, names and comments."""
    assert translate(sql) == expected


@pytest.mark.parametrize(("sql", "expected"), [
    ("SELECT 1", CLEAN), ("  (select a from t)", CLEAN), ("/* trace */ SELECT 1", CLEAN), ("-- x\nINSERT t VALUES (1)",
                                                                                           CLEAN),
    ("UPDATE t SET a=1", CLEAN), ("DELETE FROM t", CLEAN), ("REPLACE t VALUES (1)", CLEAN), ("SHOW TABLES", CLEAN),
    ("SELECT a INTO @x FROM t", SESSION), ("SELECT @x := 1", SESSION), ("SELECT GET_LOCK('a', 1)", SESSION),
    ("SELECT LAST_INSERT_ID(5)", SESSION), ("SELECT LAST_INSERT_ID()", CLEAN), ("/*! SET @x=1 */", SESSION),
    ("SELECT 1 /*M!100100 , @x:=1 */", SESSION), ("SET autocommit=0", SESSION), ("USE other", SESSION),
    ("LOCK TABLES t READ", SESSION), ("PREPARE s FROM 'x'", SESSION), ("CALL p()", SESSION),
    ("CREATE TEMPORARY TABLE t (a INT)", SESSION), ("CREATE OR REPLACE TEMPORARY TABLE t (a INT)", SESSION),
    ("CREATE TEMP TABLE t (a INT)", SESSION), ("PRAGMA foreign_keys=off", SESSION), ("ATTACH 'x' AS y", SESSION),
    ("BEGIN NOT ATOMIC SET @a=1; END", SESSION), ("begin/**/not atomic select 1; end", SESSION),
    ("IF 1 THEN SET @a=1; END IF", SESSION), ("x: BEGIN NOT ATOMIC SELECT 1; END", SESSION),
    ("SELECT 7 INTO/**/@x", SESSION), ("SELECT 7 INTO -- y\n @x", SESSION),
    ("CREATE/**/TEMPORARY TABLE t (a INT)", SESSION),
    ("CREATE TABLE t AS SELECT @x := 1", SESSION), ("SELECT `GET_LOCK`('l', 0)", SESSION),
    ("SELECT service_get_write_locks('a', 'b', 0)", SESSION), ("SELECT load_extension('x')", SESSION),
    ("START SLAVE", SESSION), ("SELECT '/*', a -- b\n FROM t # */", CLEAN), ("SELECT 'it\\'s /*', 1", CLEAN),
    ("BEGIN WORK", TRANSACTION), ("begin immediate", TRANSACTION), ("COMMIT AND CHAIN", TRANSACTION),
    ("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY", TRANSACTION),
    ("CREATE TABLE t (a INT)", TRANSACTION), ("BEGIN", TRANSACTION), ("START TRANSACTION", TRANSACTION),
    ("SAVEPOINT a", TRANSACTION), ("DROP TABLE t", TRANSACTION), (b"SELECT 1", SESSION), ("", SESSION)])
def test_what_a_statement_leaves_behind(sql: object, expected: int) -> None:
    """Only what provably leaves nothing counts as clean; what is not understood counts as the worst."""
    assert effect_of(sql) == expected


def test_a_connection_is_prepared(mariadb: MariaDB) -> None:
    """utf8mb4, autocommit, the server's query timeout and TCP keepalive; several statements at once are refused."""
    driver = make_driver(Settings(db_url=mariadb.url, db_query_timeout=7.5), "", "app")
    for _ in range(2):  # the first connection has to learn whose dialect the server speaks
        raw = driver.connect()
        cursor = raw.cursor()
        cursor.execute("SELECT @@character_set_client, @@autocommit, @@max_statement_time")
        assert cursor.fetchall() == (("utf8mb4", 1, 7.5),)
        with pytest.raises(MySQLdb.ProgrammingError):
            cursor.execute("SELECT 1; SELECT 2")
        link = driver.link(raw)
        assert link is not None
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        raw.close()


def test_a_server_that_knows_no_limit_is_used_all_the_same() -> None:
    """One that says it is MySQL and knows no max_execution_time, as a compatible product may: the client's limit is
    left; a cleared session is good too."""
    server = MariaDB("--version=8.0.36")
    try:
        driver = make_driver(Settings(db_url=server.url), "", "app")
        for _ in range(2):
            raw = driver.connect()
            assert raw.get_server_info() == "8.0.36"
            driver.reset(raw)
            cursor = raw.cursor()
            cursor.execute("SELECT @@character_set_client")
            assert cursor.fetchall() == (("utf8mb4",),)
            raw.close()
    finally:
        server.destroy()


def test_an_interrupted_call_ends_at_once(mariadb: MariaDB) -> None:
    """Another thread ends a statement by its socket."""
    driver = make_driver(Settings(db_url=mariadb.url), "", "app")
    raw = driver.connect()
    link = driver.link(raw)
    timer = threading.Timer(0.2, driver.interrupt, (raw, link))
    timer.start()
    with pytest.raises(MySQLdb.OperationalError) as caught:
        raw.cursor().execute("SELECT SLEEP(60)")
    timer.join()
    assert mysql_class(caught.value) is ErrorClass.LINK_LOST


def test_without_mysqlclient_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A MySQL address without the driver is an error in words, without the password."""
    monkeypatch.setitem(sys.modules, "MySQLdb", None)
    with pytest.raises(ConfigError, match=r"pip install 'flask_stability\[mysql\]'") as caught:
        make_driver(Settings(db_url="mysql://app:hunter2@localhost/app"), "", "app")
    assert "hunter2" not in str(caught.value)


def sqlite_pool(path: Path, **settings: Any) -> Pool:
    """A pool on a file."""
    return Pool(Settings(db_url=f"sqlite:///{path}", **settings))


def test_sqlite_in_the_instance_folder(tmp_path: Path) -> None:
    """Without a setting the database is a file named after the app; the folder is made when it is first asked for."""
    pool = Pool(Settings(), name="shop.web", instance_path=str(tmp_path / "instance"))
    assert not (tmp_path / "instance").exists()
    with pool.connection() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchall() == [("wal",)]
    assert (tmp_path / "instance" / "web.db").exists()
    pool.close()


def test_statements_are_understood_in_a_time_that_grows_with_their_length() -> None:
    """Comments before them, closed or not: 16 times the text takes no 1,000 times as long, as 2 ** n or n * n would."""
    def seconds(text: str, repeated: int) -> float:
        sql, best = text * repeated + "x", float("inf")
        for _ in range(10):  # the best of ten, of this thread's own time, whatever else the machine does
            known.clear()
            started = time.thread_time()
            effect_of(sql)
            stays_within(sql)
            translate(sql)
            best = min(best, time.thread_time() - started)
        return best

    for text in ("/*a*/ ", "/**/", "/*", "-- a\n", "# a\n", "(", " ", "'", '"', "`", "''", "/*! */", "create or "):
        assert seconds(text, 16 * 1000) < 100 * max(seconds(text, 1000), 0.001), text


def test_what_is_remembered_of_statements_is_bounded_in_bytes() -> None:
    """Texts with values in them, each another one: 118 MB were seen. Short ones are remembered, long ones are not."""
    for cache, remember in ((_translated, translate), (known, effect_of)):
        cache.clear()
        for number in range(3000):
            remember(f"select {number} -- {'x' * (number * 20)}")
        assert 0 < len(cache) <= 2000
        assert sum(sys.getsizeof(key) + sys.getsizeof(value) for key, value in cache.items()) < 9_000_000
        cache.clear()
        remember("select %s")
        assert len(cache) == 1


def test_sqlite_takes_the_same_statements(tmp_path: Path) -> None:
    """%s and %(name)s work as with mysqlclient, also in executemany, from several threads."""
    pool = sqlite_pool(tmp_path / "a.db")
    with pool.connection() as connection:
        connection.execute("CREATE TABLE t (a INT, b TEXT)")
        connection.cursor().executemany("INSERT INTO t VALUES (%s, %s)", [(1, "x"), (2, "50%s")])
        connection.execute("INSERT INTO t VALUES (%(a)s, '%s')", {"a": 3})

    def read() -> None:
        with pool.connection() as connection:
            rows.append(connection.execute("SELECT a, b FROM t WHERE a > %s ORDER BY a", (1,)).fetchall())

    rows: list[Any] = []
    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    read()
    assert rows == [[(2, "50%s"), (3, "%s")]] * 2
    pool.close()


def test_sqlite_begins_with_the_write_lock(tmp_path: Path) -> None:
    """BEGIN IMMEDIATE: a second writer waits its busy timeout, instead of failing in the middle."""
    pool = sqlite_pool(tmp_path / "a.db", db_timeout=0.2)
    with pool.connection(timeout=30) as first, pool.connection(timeout=30) as second:
        first.begin()
        with pytest.raises(sqlite3.OperationalError, match="locked") as caught:
            second.begin()
        assert pool.driver.classify(caught.value) is ErrorClass.LOCK_WAIT
        assert means_unavailable(caught.value)
        first.rollback()
        second.begin()
        second.rollback()
    pool.close()


def test_sqlite_statements_time_out(tmp_path: Path) -> None:
    """The query timeout ends a statement, and the connection goes on."""
    pool = sqlite_pool(tmp_path / "a.db", db_query_timeout=0.3)
    pool.start()
    endless = "WITH RECURSIVE n(a) AS (SELECT 1 UNION ALL SELECT a + 1 FROM n) SELECT MAX(a) FROM n"
    with pool.connection() as connection:
        with pytest.raises(sqlite3.OperationalError, match="interrupted") as caught:
            connection.execute(endless).fetchall()
        assert pool.driver.classify(caught.value) is ErrorClass.TIMED_OUT
        assert pool.housekeeper is not None
        pool.housekeeper.stop()  # on a busy machine the next statement may take that long as well
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
    pool.close()


def test_a_file_that_cannot_be_opened_is_a_clear_error(tmp_path: Path) -> None:
    """A folder in the place of the file, and a file that is no database: 503, with SQLite's own words."""
    for name in ("folder", "text"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "text").write_text("no database" * 100)
        pool = sqlite_pool(tmp_path / name)
        with pytest.raises(DatabaseUnavailable, match=r"unable to open database file|file is not a database"):
            pool.connection()
        wait_until(lambda pool=pool: pool.stats()["pool_size"] == 0)
        pool.close()


def test_a_full_disk_is_a_clear_error(tmp_path: Path) -> None:
    """A statement that finds no room says so, and the next one that needs none works."""
    pool = sqlite_pool(tmp_path / "a.db")
    with pool.connection() as connection:
        connection.execute("CREATE TABLE t (a BLOB)")
        connection.execute("PRAGMA max_page_count = 10").fetchall()  # SQLite's own way to a full disk
        with pytest.raises(sqlite3.OperationalError, match="full") as caught:
            connection.execute("INSERT INTO t VALUES (zeroblob(1000000))")
        assert caught.value.__notes__ == [f"make room on the file system of {tmp_path}/a.db"]
        assert means_unavailable(caught.value)
        assert connection.execute("SELECT COUNT(*) FROM t").fetchall() == [(0,)]
    pool.close()


def test_a_file_that_was_removed_is_left(tmp_path: Path) -> None:
    """What is open still writes to what nobody sees: soon nobody does, and a connection in use ends when it is back."""
    pool = sqlite_pool(tmp_path / "a.db")
    pool.start()
    held = pool.connection()
    with pool.connection() as connection:
        connection.execute("CREATE TABLE t (a INT)")
    old = set(pool.inventory.records)
    for file in tmp_path.glob("a.db*"):
        file.unlink()
    wait_until(lambda: all(entry.expires < time.monotonic() for entry in old))
    held.close()
    with pool.connection() as connection:
        assert connection.execute("SELECT * FROM sqlite_master").fetchall() == []
        connection.execute("CREATE TABLE t (a INT)")
    wait_until(lambda: not old & pool.inventory.records, message="the old ones are closed")
    with contextlib.closing(sqlite3.connect(tmp_path / "a.db")) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
    pool.close()


def without_privileges(function: Callable[[], str]) -> str:
    """What a function returns in a process whose user may not write everywhere."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            os.write(writer, function().encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


def test_a_read_only_database_can_be_read() -> None:
    """On a read-only file a SELECT works; an INSERT says what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.db"
        made = sqlite3.connect(path)
        made.execute("CREATE TABLE t (a INT)")
        made.close()
        path.chmod(0o444)
        os.chmod(folder, 0o555)

        def use() -> str:
            with sqlite_pool(path).connection() as connection:
                rows = connection.execute("SELECT * FROM t").fetchall()
                try:
                    connection.execute("INSERT INTO t VALUES (1)")
                except sqlite3.OperationalError as error:
                    return f"{rows} {error}"
            return "written"

        assert without_privileges(use) == "[] attempt to write a readonly database"
