"""A ``.env`` file that changes: what came from it is read anew, what has left it returns to what was there before."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_stability import environment
from flask_stability.config import load_dotenv
from flask_stability.exceptions import ConfigError


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """An environment that is put back, without a mark, in a folder of its own."""
    before = dict(os.environ)
    os.environ.pop(environment.MARK, None)
    monkeypatch.chdir(tmp_path)
    yield
    os.environ.clear()
    os.environ.update(before)


def test_a_changed_file_arrives() -> None:
    """The value of the first reading is no value that was set already; what was set by others stays."""
    os.environ["FS_SET"] = "mine"
    Path(".env").write_text("FS_SET=theirs\nFS_PASSWORD=first\nFS_GONE=1\n")
    load_dotenv()
    Path(".env").write_text("FS_SET=theirs\nFS_PASSWORD=second\nFS_NEW=1\n")
    load_dotenv()
    assert (os.environ["FS_SET"], os.environ["FS_PASSWORD"], os.environ["FS_NEW"]) == ("mine", "second", "1")
    assert "FS_GONE" not in os.environ
    os.unlink(".env")
    load_dotenv()
    assert not {"FS_PASSWORD", "FS_NEW"} & set(os.environ)
    assert os.environ["FS_SET"] == "mine"


def test_what_something_else_has_set_since_is_not_taken_back() -> None:
    """As a configuration that changes what it found."""
    Path(".env").write_text("FS_A=file\n")
    load_dotenv()
    os.environ["FS_A"] = "program"
    Path(".env").write_text("FS_A=other\n")
    load_dotenv()
    assert os.environ["FS_A"] == "program"


def test_defaults_give_way_to_a_file_that_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the sample's configuration has them; they hold again when the file is silent, without being named again."""
    monkeypatch.setattr(environment, "_defaults", {})
    os.environ["FS_SET"] = "mine"
    load_dotenv(defaults={"FS_A": "default", "FS_SET": "default"})
    assert (os.environ["FS_A"], os.environ["FS_SET"]) == ("default", "mine")
    Path(".env").write_text("FS_A=file\n")
    load_dotenv()
    assert os.environ["FS_A"] == "file"
    Path(".env").write_text("")
    load_dotenv()
    assert os.environ["FS_A"] == "default"


def test_a_broken_file_changes_nothing() -> None:
    """A slip while the service runs leaves it what it had."""
    Path(".env").write_text("FS_A=1\n")
    load_dotenv()
    Path(".env").write_text("FS_A=2\n= nonsense\n")
    with pytest.raises(ConfigError, match="line 2"):
        load_dotenv()
    assert os.environ["FS_A"] == "1"


def test_a_process_that_inherits_knows_what_came_from_the_file() -> None:
    """As the new master after SIGUSR2; the mark holds no secret."""
    Path(".env").write_text("FS_PASSWORD=hunter2\n")
    load_dotenv()
    assert "hunter2" not in os.environ[environment.MARK]
    Path(".env").write_text("FS_PASSWORD=second\n")
    code = "from flask_stability.config import load_dotenv; load_dotenv(); import os; print(os.environ['FS_PASSWORD'])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "second"


@pytest.mark.parametrize("mark", ["", "nonsense", "[]", '{"FS_A": 3}', '{"FS_A": null}'])
def test_a_mark_that_is_not_ours_is_left_alone(mark: str) -> None:
    """Anybody may set any variable."""
    os.environ.update({environment.MARK: mark, "FS_A": "mine"})
    Path(".env").write_text("FS_A=theirs\nFS_B=1\n")
    load_dotenv()
    assert (os.environ["FS_A"], os.environ["FS_B"]) == ("mine", "1")


def test_the_command_line_sees_what_the_service_sees(tmp_path: Path) -> None:
    """Flask's own reading replaces ${…} and looks in the folders above, which the service's does not."""
    Path(".env").write_text("DB_HOST=127.0.0.1\nDB_PORT=1\nDB_NAME=a\nDB_PASSWORD=p${HOME}w\n")
    inner = tmp_path / "inner"
    inner.mkdir()
    code = ("import sys, flask_stability.operate.check_db as c\n"
            "c.check_db = lambda settings, **_: sys.exit(print(settings.db_url))\n"
            "from flask.cli import main; main()")

    def seen(folder: Path) -> str:
        environ = {name: value for name, value in os.environ.items() if name != environment.MARK}
        return subprocess.run([sys.executable, "-c", code, "stability", "check-db"], cwd=folder, env=environ, text=True,
                              capture_output=True, timeout=60).stdout.strip()

    assert seen(tmp_path) == "mysql://:p%24%7BHOME%7Dw@127.0.0.1:1/a"
    assert "no database is named" in seen(inner)
