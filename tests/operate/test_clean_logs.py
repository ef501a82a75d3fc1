"""Old logs go, and nothing else."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flask_stability.operate.cli import stability
from second_user import as_nobody, given, needs_root

OLD = ("error.log.1", "health.log.12", "process-manager.log-20261101", "error.log-20261101.gz", "error.log.2.gz")
KEPT = ("error.log", "health.log", "error.log.old", "notes.log.1", "error.log.1.txt", "xerror.log.1")


def _clean(*arguments: str) -> Result:
    return CliRunner().invoke(stability, ["clean-logs", *arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Logs of all kinds, a month old, and one young backup."""
    for name in (*OLD, *KEPT):
        (tmp_path / name).write_text("line\n")
        os.utime(tmp_path / name, (time.time() - 30 * 86400,) * 2)
    (tmp_path / "error.log.3").write_text("young\n")
    (tmp_path / "error.log.4").mkdir()
    (tmp_path / "error.log.5").symlink_to(tmp_path / "error.log")
    return tmp_path


def test_rotated_logs_that_are_old_are_removed(folder: Path) -> None:
    """What is written now, what is young and what is no log of ours stays."""
    result = _clean("--older-than", "14d", "--dir", str(folder))
    assert result.exit_code == 0, result.output
    assert f"removed {len(OLD)} files, {len(OLD) * 5} bytes" in result.output
    assert {path.name for path in folder.iterdir()} == {*KEPT, "error.log.3", "error.log.4", "error.log.5"}


def test_a_dry_run_removes_nothing(folder: Path) -> None:
    """It names what would go."""
    result = _clean("--older-than", "2w", "--dir", str(folder), "--dry-run")
    assert result.exit_code == 0
    assert all(str(folder / name) in result.output for name in OLD)
    assert all((folder / name).exists() for name in OLD)


def test_the_folder_is_the_services_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of STABILITY_LOG_DIR; without it the remedy is named."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("STABILITY_LOG_DIR", raising=False)
    assert "--dir" in _clean("--older-than", "1h").output
    monkeypatch.setenv("STABILITY_LOG_DIR", str(folder))
    assert f"removed {len(OLD)} files" in _clean("--older-than", "1h").output


@pytest.mark.parametrize("age", ["14", "d", "-1d", "14 days", "1y"])
def test_an_age_without_a_unit_is_refused(folder: Path, age: str) -> None:
    """With what is accepted, and nothing is removed."""
    result = _clean(f"--older-than={age}", "--dir", str(folder))
    assert result.exit_code == 2
    assert "14d" in result.output
    assert all((folder / name).exists() for name in OLD)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    """By name."""
    result = _clean("--older-than", "1d", "--dir", str(tmp_path / "none"))
    assert result.exit_code == 1
    assert str(tmp_path / "none") in result.output


@needs_root
def test_a_folder_that_another_user_made_a_link_is_not_followed(folder: Path, tmp_path: Path) -> None:
    """Root would remove what lies where it leads."""
    home = given(tmp_path / "home")
    as_nobody(lambda: os.symlink(folder, home / "logs"))
    result = _clean("--older-than", "14d", "--dir", str(home / "logs"))
    assert result.exit_code == 1
    assert "a link that user" in result.output
    assert all((folder / name).exists() for name in OLD)
    link = tmp_path / "own"
    link.symlink_to(folder)
    assert _clean("--older-than", "14d", "--dir", str(link)).exit_code == 0
    assert not (folder / OLD[0]).exists()
