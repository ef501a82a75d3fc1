"""Settings: read once, checked together, told clearly."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_stability.config import KEYS, DatabaseAddress, Settings, load_dotenv, unknown_keys
from flask_stability.exceptions import ConfigError
from flask_stability.readers import parse_size


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
        Settings.load({}, {"STABILITY_DB_URL": "mysql://u:hunter2@", "STABILITY_HEALTH_TOKEN": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert "hunter2" not in repr(Settings.load({}, {"STABILITY_DB_URL": "mysql://u:hunter2@h/d"}))


def test_the_database_from_separate_variables() -> None:
    """Passwords with any character survive."""
    settings = Settings.load({}, {"STABILITY_DB_FROM_ENV": "on", "DB_HOST": "db", "DB_USER": "a b", "DB_NAME": "x",
                                  "DB_PASSWORD": "p/w@:#%"})
    assert DatabaseAddress.from_url(settings.db_url or "") == ("db", 3306, "a b", "p/w@:#%", "x")
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
