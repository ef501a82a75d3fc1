"""Records on a terminal, for people; JSON where nobody looks."""

from __future__ import annotations

import json
import logging
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from flask_stability.logs.console import ConsoleLine
from support import ROOT

PROGRAM = """
import sys
from dataclasses import replace
from flask_stability import logs, request
from flask_stability.config import Settings
from flask_stability.errors import report
logs.setup(replace(Settings(), log_dir=sys.argv[1] or None, log_format=sys.argv[2]))
record = request.RequestRecord({"REQUEST_METHOD": "GET", "PATH_INFO": "/orders"}, 1)
try:
    try:
        {}["Größe"]
    except KeyError as error:
        raise ValueError("no \\x1b[2Jsuch\\nERROR order") from error
except ValueError as error:
    report.record(error, request=record)
logs.process("worker_ready", worker_pid=7)
"""


def _run(folder: Path | None, form: str, *, terminal: bool) -> str:
    """What the program writes to stderr."""
    script = Path(tempfile.gettempdir()) / f"console-{os.getpid()}.py"
    script.write_text(PROGRAM)
    command = [sys.executable, str(script), str(folder or ""), form]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        if not terminal:
            return subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=60, check=True).stderr
        ours, its = pty.openpty()
        try:
            with subprocess.Popen(command, env=env, stderr=its) as process:
                os.close(its)
                data = b""
                try:
                    while chunk := os.read(ours, 4096):
                        data += chunk
                except OSError:  # EIO: the other end is closed
                    pass
                assert process.wait(60) == 0
        finally:
            os.close(ours)
        return data.decode().replace("\r\n", "\n")
    finally:
        script.unlink()


@pytest.mark.parametrize("with_files", [True, False])
def test_on_a_terminal_an_exception_is_a_traceback_with_its_request(tmp_path: Path, with_files: bool) -> None:
    """What came first stands first; no text of it moves the cursor. With files they have the JSON all the same."""
    said = _run(tmp_path / "logs" if with_files else None, "auto", terminal=True)
    first, second = said.split("The exception above led to this one:\n")
    assert "GET /orders  (request " in first.splitlines()[0]
    assert first.splitlines()[1] == "Traceback (most recent call last):"
    assert '    {}["Größe"]' in first
    assert "KeyError: 'Größe'" in first
    assert "ValueError: no \\x1b[2Jsuch\\nERROR order\n" in second
    assert "\x1b[2J" not in said
    if with_files:
        record, = map(json.loads, (tmp_path / "logs" / "error.log").read_text().splitlines())
        assert record["exception"][0]["type"] == "ValueError"
        assert "worker_ready" not in said  # what is no fault stays in its file
    else:
        assert said.splitlines()[-1].endswith("INFO worker_ready  worker_pid=7")


@pytest.mark.parametrize(("form", "terminal"), [("auto", False), ("json", True), ("json", False)])
def test_where_nobody_looks_it_is_json(form: str, terminal: bool) -> None:
    """One object a line; also on a terminal where that is asked for."""
    records = [json.loads(line) for line in _run(None, form, terminal=terminal).splitlines()]
    assert [record["event"] for record in records] == ["exception", "worker_ready"]


@pytest.mark.parametrize("fields", [{}, {"exception": "text"}, {"exception": [{}]}, {"stack": ["no frame", 3]},
                                    {"request_id": "x"}, {"exception": [{"frames": ["/none.py:x f"], "group": [{}]}]}])
def test_a_record_of_any_shape_is_shown(fields: dict[str, Any]) -> None:
    """Nothing is raised."""
    record = logging.LogRecord("x", 40, "", 0, "x", None, None)
    record.fields = {"level": "ERROR", "event": "x", **fields}
    assert "ERROR x" in ConsoleLine().format(record)
