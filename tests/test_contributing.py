"""What CONTRIBUTING.rst, the sessions, the hooks and the issue forms say is so."""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "CONTRIBUTING.rst").read_text()
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def _sessions() -> set[str]:
    found = set()
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.FunctionDef):
            for decorator in node.decorator_list:
                names = [keyword.value.value for keyword in getattr(decorator, "keywords", [])
                         if keyword.arg == "name" and isinstance(keyword.value, ast.Constant)]
                found.add(str(names[0]) if names else node.name)
    return found


def test_every_session_is_documented_and_every_documented_one_exists() -> None:
    """By ``nox -s NAME``."""
    assert set(re.findall(r"nox -s (\w+)", TEXT)) == _sessions() == {
        "lint", "types", "quick", "all", "oldest", "docs", "coverage"}


def test_every_file_that_it_names_exists() -> None:
    """From the root, from the package, or beside another one that was named."""
    named = re.findall(r"``([\w./*-]+\.(?:py|rst|cfg|json|md))``", TEXT)
    assert len(named) > 20
    for name in named:
        folders = (ROOT, ROOT / "flask_stability", ROOT / "flask_stability" / "database", ROOT / "tests" / "database")
        assert any(list(folder.glob(name)) for folder in folders) or "NAME" in name, name


def test_the_test_that_is_run_as_an_example_exists() -> None:
    """The file, and a test in it that ``-k`` selects."""
    path, word = re.findall(r"pytest (\S+) -k (\w+)", TEXT)[0]
    assert re.search(rf"def test_\w*{word}", (ROOT / path).read_text())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_the_issue_forms_are_forms(form: Path) -> None:
    """As GitHub wants them: each field has a type, an id of its own and a label."""
    found: dict[str, Any] = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert found == {"blank_issues_enabled": False}
        return
    assert {"name", "description", "body"} <= set(found)
    fields = [part for part in found["body"] if part["type"] != "markdown"]
    assert len({part["id"] for part in fields}) == len(fields) > 2
    assert all(part["type"] in ("input", "textarea", "dropdown", "checkboxes") for part in fields)
    assert all(part["attributes"]["label"] for part in fields)


def test_the_hooks_of_a_commit_run_what_is_installed() -> None:
    """With the project's own environment, so that nothing is pinned twice."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    installed = setup["options.extras_require"]["dev"] + setup["options.extras_require"]["test"]
    hooks = [hook for repo in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
             for hook in repo["hooks"]]
    for hook in hooks:
        words = hook["entry"].split()
        assert words[:2] == [".venv/bin/python", "-m"]
        assert words[2] in installed, hook
        assert all((ROOT / word).exists() for word in words if word.startswith(("tests/", "flask_"))), hook
    assert {hook["id"] for hook in hooks} == {"ruff", "mypy", "readme"}


def test_coverage_is_of_branches_and_of_forked_workers() -> None:
    """Most of the package runs in processes that a test starts."""
    run = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["coverage"]["run"]
    assert run["branch"]
    assert {"subprocess", "fork"} <= set(run["patch"])
