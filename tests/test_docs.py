"""docs/ builds without a warning, and what it says is so: its code runs, its commands, settings and events exist."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from gunicorn.config import KNOWN_SETTINGS

from flask_stability import config
from flask_stability.operate.cli import stability
from flask_stability.scoreboard import REASONS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.append(str(DOCS))
import settings_page  # noqa: E402

PAGES = sorted(DOCS.glob("*.rst"))
#: Loggers of events: a name in the first argument of these is an event.
_TELLERS = {"logs.error", "logs.health", "logs.process", "self.events.log", "self._events.log", "house.events.log"}


def blocks(page: Path, language: str) -> list[str]:
    """Code blocks of a page, without their indentation."""
    found = re.findall(rf"^( *)\.\. code-block:: {language}\n((?:\1   +.*\n|\s*\n)+)", page.read_text(), re.MULTILINE)
    texts = []
    for indent, body in found:
        lines = [line.removeprefix(indent)[4:] for line in body.splitlines()]
        texts.append("\n".join(line for line in lines if not line.startswith(":caption:")).strip() + "\n")
    return texts


def commands(page: Path) -> Iterator[str]:
    """Lines of a page that a reader types."""
    for block in blocks(page, "console"):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("$ "):
                yield line[2:]


def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    """With Flask's theme; every cross-reference leads somewhere."""
    done = subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", "-d",
                           str(tmp_path / "doctrees"), str(DOCS), str(tmp_path / "html")], capture_output=True,
                          text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    settings = (tmp_path / "html" / "settings.html").read_text()
    assert all(key in settings for key in config.KEYS)


def test_the_page_of_settings_has_each_once_in_a_group_beside_the_ten_that_matter_first() -> None:
    """A new setting finds its group by its name; one that fits nowhere is among "More"."""
    rows = settings_page.rows()
    assert set(rows) == set(config.KEYS)
    page = settings_page.page()
    for key in config.KEYS:
        first = key.removeprefix("STABILITY_") in settings_page.FIRST
        assert page.count(f"   * - ``{key}``") == 1 + first, key
    assert len(settings_page.FIRST) == 10


def _with_python() -> list[Path]:
    return [page for page in PAGES if blocks(page, "python")]


@pytest.mark.parametrize("page", _with_python(), ids=lambda page: page.stem)
def test_its_python_runs(page: Path, tmp_path: Path) -> None:
    """The blocks of a page one after the other, in an empty folder, as a reader would try them."""
    program = tmp_path / "page.py"
    program.write_text("\n\n".join(blocks(page, "python")))
    done = subprocess.run([sys.executable, "-W", "error", str(program)], cwd=tmp_path, capture_output=True, text=True,
                          timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pages_with_python_are_those_that_are_known() -> None:
    """Else a page whose blocks are not found would pass."""
    assert {page.stem for page in _with_python()} >= {"quickstart", "existing-app", "exceptions", "database", "health"}


def test_every_command_of_ours_exists_with_its_options() -> None:
    """In blocks and in running text, held against the command line itself."""
    seen = set()
    for page in PAGES:
        inline = re.findall(r"``((?:flask|python) [^`]*)``", re.sub(r"\s+", " ", page.read_text()))
        for line in [*commands(page), *inline]:
            if " stability" not in line or not line.startswith("flask "):
                continue
            words = shlex.split(line.partition("|")[0].partition("#")[0])
            words = words[words.index("stability") + 1:]
            if not words:
                continue
            assert words[0] in stability.commands, (page.name, line)
            command = stability.commands[words[0]]
            command.make_context(words[0], words[1:], resilient_parsing=False)
            seen.add(words[0])
    assert seen == set(stability.commands), "a command is not documented"
    assert isinstance(stability, click.Group)


def test_every_setting_that_it_names_exists() -> None:
    """Ours and gunicorn's."""
    known = set(config.KEYS) | {"STABILITY_MEMORY_LIMITT"}  # the page shows what a misspelt one leads to
    for page in PAGES:
        for key in re.findall(r"STABILITY_[A-Z0-9_]+[A-Z0-9]", page.read_text()):
            assert key in known, (page.name, key)
    gunicorns = {setting.name for setting in KNOWN_SETTINGS}
    table = (DOCS / "coming-from.rst").read_text()
    part = table[table.index("**gunicorn**"):table.index("**uWSGI**")]
    for name in re.findall(r"^   \* - ``([a-z_]+)``(?:, ``([a-z_]+)``)?", part, re.MULTILINE):
        assert set(name) - {""} <= gunicorns, name


def test_every_file_that_it_names_exists() -> None:
    """In the project's own folders."""
    for page in PAGES:
        for name in re.findall(r"``((?:tests|sample_app|docs)/[\w./-]+)``", page.read_text()):
            assert (ROOT / name).exists(), (page.name, name)


def _strings(node: ast.AST) -> Iterator[str]:
    """What an expression may come to; not what it compares."""
    if isinstance(node, ast.IfExp):
        yield from _strings(node.body)
        yield from _strings(node.orelse)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def events() -> set[str]:
    """Every event that the package writes: by its loggers' first argument, and by `event`, as argument or variable."""
    found: set[str] = set()
    for path in (ROOT / "flask_stability").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                if ast.unparse(node.func) in _TELLERS and node.args:
                    found.update(_strings(node.args[0]))
                found.update(text for keyword in node.keywords if keyword.arg == "event"
                             for text in _strings(keyword.value))
            elif isinstance(node, ast.Assign) and [ast.unparse(one) for one in node.targets] == ["event"]:
                found.update(_strings(node.value))
    return found


def test_the_catalogue_of_events_is_complete() -> None:
    """Each event of the code is on the page, and none that the code does not write."""
    text = (DOCS / "logs.rst").read_text()
    rows = re.findall(r"^   \* - (``.*)$", text[text.index(".. _events:"):], re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"``(\w+)``", row)}
    assert len(listed) > 50
    assert listed == events()


def test_every_event_and_reason_that_a_page_greps_for_exists() -> None:
    """In the runbook and the checklists."""
    known: set[Any] = events()
    for page in PAGES:
        for line in commands(page):
            for names in re.findall(r'"?event"?:? (?:== )?"\(?([\w|]+)\)?"', line):
                assert set(names.split("|")) <= known, (page.name, line)
    text = (DOCS / "supervision.rst").read_text()
    part = text[text.index("\nReasons\n"):]
    assert set(re.findall(r"``(\w+)``", part)) == set(REASONS) - {"none"}


# -- the pages that exist in Chinese as well --------------------------------------------------------------------------

TRANSLATED = sorted(page.name for page in (DOCS / "zh").glob("*.rst") if page.stem != "index")
_TITLE = re.compile(r"^(\S.*)\n([=-])\2+$", re.MULTILINE)


def _parts(page: Path) -> list[str]:
    """The text of each section of a page, without its title."""
    text = page.read_text()
    starts = [match.end() for match in _TITLE.finditer(text)]
    ends = [*[match.start() for match in _TITLE.finditer(text)][1:], len(text)]
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _same(part: str) -> dict[str, object]:
    """What is the same in every language: code, rows of tables, names, figures, references, steps."""
    code = re.findall(r"\.\. code-block:: (\w+)\n((?:\n| {4,}.*\n)+)", part)
    return {"code": code, "rows": len(re.findall(r"^   \* -", part, re.MULTILINE)),
            "names": sorted(re.findall(r"``([^`]+)``", re.sub(r"\s+", " ", part))),
            "pages": sorted(name.removeprefix("/") for name in re.findall(r":doc:`([^`]+)`", part)),
            "steps": re.findall(r"^(\d)\. ", part, re.MULTILINE)}


def test_first_steps_runbook_and_faults_exist_in_chinese() -> None:
    """What somebody needs at first, and at night."""
    assert TRANSLATED == ["faults.rst", "quickstart.rst", "runbook.rst"]


@pytest.mark.parametrize("name", TRANSLATED)
def test_the_chinese_page_is_in_step_with_the_english_one(name: str) -> None:
    """Section by section: a command, a setting, an event, a row or a step in one is in the other."""
    english, chinese = _parts(DOCS / name), _parts(DOCS / "zh" / name)
    assert len(english) == len(chinese)
    for number, (one, other) in enumerate(zip(english, chinese, strict=True)):
        assert _same(other) == _same(one), f"section {number} of docs/zh/{name} is not that of docs/{name}"
    assert len(re.findall(r"[\u4e00-\u9fff]", "".join(chinese))) > 200
