"""Settings: read once, checked together, told clearly."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
import traceback
import types
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stability.config import KEYS, Settings, load_dotenv, server_bind, unknown_keys
from flask_stability.config_types import parse_size
from flask_stability.dburl import DatabaseURL
from flask_stability.exceptions import ConfigError
from second_user import NOBODY, as_nobody, needs_root, reachable


def test_every_default_passes_its_own_check() -> None:
    """The defaults as text, given back as settings, are the defaults."""
    settings = Settings()
    for key, name in KEYS.items():
        value = getattr(settings, name)
        if value is None or value == () or value is False:
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert getattr(Settings.load({}, {key: text}), name) == value, key


def test_all_bad_values_are_reported_together() -> None:
    """Each line names key, value and remedy."""
    with pytest.raises(ConfigError) as caught:
        Settings.load({"STABILITY_DB_TIMEOUT": "soon", "STABILITY_HEALTH_PATH": "health/"},
                      {"STABILITY_MEMORY_LIMIT": "much", "STABILITY_RESTART_ACTION": "panic"})
    lines = caught.value.problems
    assert len(lines) == 4
    assert "STABILITY_DB_TIMEOUT='soon': give a number" in lines
    assert "STABILITY_RESTART_ACTION='panic': give one of backoff, halt" in lines


def test_a_mysql_address_without_mysqlclient_is_a_bad_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told with the others before the start, however the address was given; SQLite needs none."""
    monkeypatch.delitem(sys.modules, "MySQLdb", raising=False)
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    for environ in ({"STABILITY_DB_URL": "mysql://u:p@db/shop"}, {"STABILITY_DB_URL": "mariadb://u:p@db/shop"},
                    {"STABILITY_DB_FROM_ENV": "on", "DB_HOST": "db", "DB_NAME": "shop"}):
        with pytest.raises(ConfigError, match="mysqlclient is not installed"):
            Settings.from_environ(environ)
    assert Settings.from_environ({"STABILITY_DB_URL": "sqlite:///shop.db"}).db_url == "sqlite:///shop.db"


def test_the_other_driver_is_named_where_it_is_the_one_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """``mysql://`` is mysqlclient's alone: nobody gets another driver without asking, and the error says how to ask."""
    monkeypatch.delitem(sys.modules, "MySQLdb", raising=False)
    monkeypatch.setitem(sys.modules, "pymysql", types.ModuleType("pymysql"))
    monkeypatch.setattr(sys, "path", [])
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"write mysql\+pymysql:// in STABILITY_DB_URL"):
        Settings.from_environ({"STABILITY_DB_URL": "mysql://u:p@db/shop"})
    address = "mysql+pymysql://u:p@db/shop"
    assert Settings.from_environ({"STABILITY_DB_URL": address}).db_url == address
    monkeypatch.delitem(sys.modules, "pymysql")
    with pytest.raises(ConfigError, match=r"PyMySQL is not installed: pip install 'flask_stability\[pymysql\]'"):
        Settings.from_environ({"STABILITY_DB_URL": address})


def test_app_config_wins_over_the_environment() -> None:
    """What the app sets is meant."""
    assert Settings.load({"STABILITY_DB_MAX_SIZE": 3}, {"STABILITY_DB_MAX_SIZE": "7"}).db_max_size == 3


def test_a_setting_of_the_server_in_app_config_names_the_variable() -> None:
    """The master has no app, so it could never be read."""
    with pytest.raises(ConfigError, match="set the environment variable STABILITY_MEMORY_LIMIT"):
        Settings.load({"STABILITY_MEMORY_LIMIT": "256M"}, {})


def test_a_misspelt_key_in_app_config_names_the_right_one() -> None:
    """A near miss is refused; a stranger's key is left alone."""
    with pytest.raises(ConfigError, match="did you mean STABILITY_DB_MAX_SIZE"):
        Settings.load({"STABILITY_DB_MAXSIZE": 3}, {})
    assert unknown_keys({"STABILITY_POOL": 1, "STABILITY_SOMETHING_OF_THEIRS": 1}) == {
        "STABILITY_POOL": None, "STABILITY_SOMETHING_OF_THEIRS": None}


def test_no_secret_is_shown() -> None:
    """Neither in an error nor in the settings' text."""
    with pytest.raises(ConfigError) as caught:
        Settings.load({}, {"STABILITY_DB_URL": "mysql://u:hunter2@", "STABILITY_HEALTH_TOKEN": "hunter2 "})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Settings.load({}, {"STABILITY_DB_URL": "mysql://u:hunter2@h/d"}))


def test_the_database_from_separate_variables() -> None:
    """Passwords with any character survive."""
    settings = Settings.load({}, {"STABILITY_DB_FROM_ENV": "on", "DB_HOST": "db", "DB_USER": "a b", "DB_NAME": "x",
                                  "DB_PASSWORD": "p/w@:#%"})
    found = DatabaseURL.parse(settings.db_url or "")
    assert (found.host, found.port, found.user, found.password, found.name) == ("db", 3306, "a b", "p/w@:#%", "x")
    assert Settings.load({}, {"DB_HOST": "somebody else's"}).db_url is None


def test_settings_that_depend_on_each_other() -> None:
    """A small pool keeps fewer idle; a token makes details the token's; a token is needed where asked for."""
    assert Settings.load({"STABILITY_DB_MAX_SIZE": 4}, {}).db_max_idle == 4
    assert Settings.load({"STABILITY_HEALTH_TOKEN": "a-long-token"}, {}).health_details == "token"
    assert Settings.load({}, {}).health_details == "never"
    with pytest.raises(ConfigError, match="needs STABILITY_HEALTH_TOKEN"):
        Settings.load({"STABILITY_HEALTH_DETAILS": "token"}, {})


@given(st.integers(1, 10**6), st.sampled_from(["", "K", "m", "G", "MiB", "gb"]))
def test_sizes_are_bytes_times_their_unit(number: int, unit: str) -> None:
    """Binary units, whatever their spelling."""
    factor = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}[unit[:1].upper()]
    assert parse_size(f"{number}{unit}") == number * factor


@given(st.dictionaries(st.sampled_from(sorted(KEYS)), st.text(max_size=20)))
def test_no_text_in_the_environment_raises_anything_but_a_config_error(environ: dict[str, str]) -> None:
    """Whatever stands there."""
    with contextlib.suppress(ConfigError):
        Settings.load({}, environ)


def test_a_dotenv_file_adds_and_does_not_override(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set already stays; a broken line is named; no file is no error."""
    name = f"FS_{random.randrange(10**9)}"
    monkeypatch.setenv(f"{name}_SET", "mine")
    monkeypatch.setenv(f"{name}_NEW", "to be removed afterwards")
    monkeypatch.delenv(f"{name}_NEW")
    file = tmp_path / ".env"
    file.write_text(f'# comment\n{name}_SET=theirs\nexport {name}_NEW="a b"\n')
    load_dotenv(str(file))
    assert os.environ[f"{name}_SET"] == "mine"
    assert os.environ.pop(f"{name}_NEW") == "a b"
    file.write_text("OK=1\n= nonsense\n")
    with pytest.raises(ConfigError, match="line 2"):
        load_dotenv(str(file))
    load_dotenv(str(tmp_path / "missing"))


# -- secrets ---------------------------------------------------------------------------------------------------------

SECRET = "hunter2correcthorse"
URLS = {"STABILITY_DB_URL": f"mysql://user:{SECRET}@db.example:3306/shop",
        "STABILITY_ALERT_WEBHOOK": f"https://user:{SECRET}@hooks.example:443/services/{SECRET}?token={SECRET}"}
#: What a slip of the hand, a Chinese keyboard or a copied text leaves in a URL.
SLIPS = st.sampled_from([*"：／＠。？＃［］ \t\n\0[]@:/#?%", "：//", "%zz", "\ud800", "::", "99999", "-1", "\u200b",
                         "℀", ""])


@given(st.sampled_from(sorted(URLS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), SLIPS), max_size=4))
def test_no_secret_leaves_a_url_whatever_is_wrong_with_it(key: str, slips: list[tuple[float, int, str]]) -> None:
    """Neither in the error, nor in its chain, nor in the representation of settings that were accepted."""
    url = URLS[key]
    for place, length, text in slips:
        at = int(place * len(url))
        if SECRET in url[:at] + url[at + length:]:  # else it is no longer the secret that would be seen
            url = url[:at] + text + url[at + length:]
    try:
        said = repr(Settings.load({key: url}, {}))
    except ConfigError as error:
        said = "".join(traceback.format_exception(error))
    assert SECRET not in said
    assert SECRET[:8] not in said


@pytest.mark.parametrize("url", ["mysql://user:{}：@db/shop", "mysql://user:{}@db／shop", "mysql：//user:{}@db/shop"])
def test_a_full_width_character_is_named_by_its_number(url: str) -> None:
    """It looks like the one that was meant; before, Python's own words for it had the password in them."""
    with pytest.raises(ConfigError) as caught:
        Settings.from_environ({"STABILITY_DB_URL": url.format(SECRET)})
    problem, = caught.value.problems
    assert problem.startswith("STABILITY_DB_URL=(not shown): give mysql://user:password@host:port/database")
    assert "full-width character (U+FF" in problem
    assert SECRET not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["http://hooks/a b", "http://hooks:abc/", "http://hooks:99999/", "http://[::1/",
                                 "http:///x"])
def test_a_webhook_that_could_never_be_asked_is_told_at_the_start(url: str) -> None:
    """Not with the first alert."""
    with pytest.raises(ConfigError, match=r"STABILITY_ALERT_WEBHOOK=\(not shown\): give an http:// or https://"):
        Settings.from_environ({"STABILITY_ALERT_WEBHOOK": url})


# -- values that no one writes by hand -------------------------------------------------------------------------------

HUGE = (10**400, -10**400, 10**5000, "9" * 400, "9" * 5000, "1e400", [10**400], 10**18, {1: 2}, b"\xff", object())


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_number_of_hundreds_of_digits_is_one_line_or_a_value_that_fits(key: str) -> None:
    """No traceback; what is accepted fits the scoreboard's words, seconds as nanoseconds too."""
    for raw in HUGE:
        try:
            value, problems = getattr(Settings.load({key: raw}, {}), KEYS[key]), []
        except ConfigError as error:
            value, problems = None, error.problems
        assert all(len(problem) < 700 and "\n" not in problem for problem in problems), problems
        if isinstance(value, (int, float)):
            assert abs(value) <= 2**60
            assert not isinstance(value, float) or abs(value) * 1e9 < 2**63


@pytest.mark.parametrize("port", ["9" * 5000, "0", "65536", "1.5", "-1", "٣٠٠٧", "abc"])
def test_a_port_that_is_none_is_one_line(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the service and of the database."""
    monkeypatch.setenv("SERVER_PORT", port)
    with pytest.raises(ConfigError, match=r"SERVER_PORT=.{1,210}: give a port between 1 and 65535"):
        server_bind()
    with pytest.raises(ConfigError, match=r"DB_PORT=.{1,210}: give a port between 1 and 65535"):
        Settings.from_environ({"STABILITY_DB_FROM_ENV": "on", "DB_HOST": "h", "DB_NAME": "n", "DB_PORT": port})


def test_a_nul_in_a_dotenv_file_is_named_by_its_line(tmp_path: Path) -> None:
    """In a name or a value: the environment can hold none."""
    file = tmp_path / ".env"
    for text in (b"A=1\nB=x\0y\n", b"A=1\nB\0=1\n"):
        file.write_bytes(text)
        with pytest.raises(ConfigError, match="line 2"):
            load_dotenv(str(file))
    os.environ.pop("A", None)


def test_a_dotenv_file_that_anybody_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever writes it decides what runs as the service's user."""
    file = tmp_path / ".env"
    file.write_text("FS_PLANTED=1\n")
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod o-w"):
        load_dotenv(str(file))
    assert "FS_PLANTED" not in os.environ
    tmp_path.chmod(0o777)  # as WSL shows everything: then the file is no weaker than what lies beside it
    load_dotenv(str(file))
    assert os.environ.pop("FS_PLANTED") == "1"


@needs_root
def test_a_dotenv_file_that_another_user_planted_is_refused(tmp_path: Path) -> None:
    """In a folder that everybody writes; one of the folder's owner, who could replace all in it, is read."""
    folder = reachable(tmp_path) / "folder"
    folder.mkdir()
    folder.chmod(0o1777)
    as_nobody(lambda: (folder / ".env").write_text("FS_PLANTED=1\n") and None)
    with pytest.raises(ConfigError, match=f"belongs to user {NOBODY}"):
        load_dotenv(str(folder / ".env"))
    assert "FS_PLANTED" not in os.environ
    os.chown(folder, NOBODY, NOBODY)
    load_dotenv(str(folder / ".env"))
    assert os.environ.pop("FS_PLANTED") == "1"
