"""What a process has once, and the one reset of it in a forked child."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from flask_stability import runtime as module
from flask_stability.runtime import ORDER, Part, Runtime

PACKAGE = Path(module.__file__).parent
SOURCES = sorted(path for path in PACKAGE.rglob("*.py") if path != Path(module.__file__))


def _name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


# -- no other module has state of the process -------------------------------------------------------------------------

#: Containers of the whole process that a fork does not tear and that all apps may share, each with the reason.
CONSTANT = {
    ("database/engine.py", "_asking"): "identifiers of threads; those of the parent are not in the child",
    ("database/sqlite.py", "_translated"): "a cache of pure results",
    ("environment.py", "_defaults"): "what the configuration gave, before any fork",
    ("errors/handlers.py", "unavailable"): "tests for an outage, the same for all apps",
    ("errors/hooks.py", "_previous"): "Python's hooks that were there before; a child inherits ours with them",
    ("request.py", "held"): "as `inflight`",
    ("request.py", "inflight"): "the table itself; the part `requests` clears it",
    ("request.py", "waited"): "the part `requests` clears it",
    ("scoreboard/black_box.py", "_claiming"): "the runtime has it renewed, below which it is",
    ("scoreboard/black_box.py", "places"): "as `_claiming`",
    ("server/gunicorn/defaults.py", "_chosen"): "what the configuration file chose, in the master",
    ("server/gunicorn/glogging.py", "_streams"): "one patient stream for each of Python's; a child inherits both",
    ("wsgi/validation.py", "known_heads"): "a cache of pure results",
}
#: Names that functions of a module set anew, and why no object holds them.
GLOBAL = {"scoreboard/black_box.py": "each request reads them, so without an object between; the runtime resets them"}
_STATE = (ast.List, ast.Dict, ast.Set)
_MAKERS = frozenset({"list", "dict", "set", "Lock", "RLock", "Event", "Condition", "Semaphore", "BoundedSemaphore",
                     "WeakSet", "WeakKeyDictionary", "WeakValueDictionary", "deque", "defaultdict", "local", "Queue",
                     "SimpleQueue", "OrderedDict"})


def _assigned(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    """The lower-case names of a module with what it gives them."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and not target.id.isupper() and target.id.strip("_").islower():
                yield target.id, value


def _is_state(value: ast.expr) -> bool:
    if isinstance(value, _STATE):
        return not (getattr(value, "elts", None) or getattr(value, "keys", None))  # filled ones are tables
    if not isinstance(value, ast.Call):
        return False
    made = value.func
    return (made.attr if isinstance(made, ast.Attribute) else getattr(made, "id", "")) in _MAKERS


@pytest.mark.parametrize("path", SOURCES, ids=_name)
def test_no_module_keeps_state_outside_of_the_runtime(path: Path) -> None:
    """No ``global``, no hook of its own at a fork, no lock or container of the process that no part resets."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [f"line {node.lineno}: global {', '.join(node.names)}" for node in ast.walk(tree)
             if isinstance(node, ast.Global) and _name(path) not in GLOBAL]
    found += [f"line {node.lineno}: {node.attr}" for node in ast.walk(tree)
              if isinstance(node, ast.Attribute) and node.attr == "register_at_fork"]
    found += [f"line {value.lineno}: {name}" for name, value in _assigned(tree)
              if _is_state(value) and (_name(path), name) not in CONSTANT]
    assert not found, f"{_name(path)}: make it a Part in runtime.ORDER: {found}"


def test_the_list_of_constants_is_true() -> None:
    """What is not there any more is not listed."""
    there = {(_name(path), name) for path in SOURCES
             for name, value in _assigned(ast.parse(path.read_text(encoding="utf-8"))) if _is_state(value)}
    assert set(CONSTANT) <= there


def test_the_runtime_registers_once() -> None:
    """One reset, so its order is one."""
    text = Path(module.__file__).read_text(encoding="utf-8")
    assert sum(isinstance(node, ast.Attribute) and node.attr == "register_at_fork"
               for node in ast.walk(ast.parse(text))) == 1


# -- the order ------------------------------------------------------------------------------------------------------


class _Told(Part):
    def __init__(self, name: str, told: list[str], fails: bool = False) -> None:
        self.name, self.told, self.fails = name, told, fails

    def before_fork(self) -> None:
        self.told.append(f"before {self.name}")

    def after_fork_in_parent(self) -> None:
        self.told.append(f"after {self.name}")

    def reset_after_fork(self) -> None:
        self.told.append(self.name)
        if self.fails:
            raise OSError(self.name)


def test_parts_are_reset_in_the_fixed_order_not_in_that_of_imports() -> None:
    """Whichever module was imported first; preparing goes the other way."""
    runtime, told = Runtime(), list[str]()
    for name in reversed(ORDER):
        runtime.add(name, _Told(name, told))
    runtime.reset_after_fork()
    assert told == list(ORDER)
    told.clear()
    runtime.before_fork()
    assert told == [f"before {name}" for name in reversed(ORDER)]
    told.clear()
    runtime.after_fork_in_parent()
    assert told == [f"after {name}" for name in ORDER]


def test_a_part_that_fails_keeps_no_other_from_its_reset() -> None:
    """The first failure is told once all are done."""
    runtime, told = Runtime(), list[str]()
    for name in ORDER:
        runtime.add(name, _Told(name, told, fails=name in (ORDER[0], ORDER[2])))
    with pytest.raises(OSError, match=ORDER[0]):
        runtime.reset_after_fork()
    assert told == list(ORDER)


@pytest.mark.parametrize("name", ["nonsense", ORDER[0]])
def test_an_unknown_part_and_a_second_one_are_refused(name: str) -> None:
    """What stands in no order would be reset at no time, and of two one would be forgotten."""
    runtime = Runtime()
    runtime.add(ORDER[0], _Told("first", []))
    with pytest.raises(ValueError, match="ORDER"):
        runtime.add(name, _Told("second", []))


# -- a real fork while other threads hold everything ------------------------------------------------------------------

PROGRAM = """
import json, os, sys, threading
from flask import Flask
from flask_stability import StabilityExt, logs, request
from flask_stability.apps import apps
from flask_stability.errors import report
from flask_stability.health.access import refused
from flask_stability.memory import process as memory
from flask_stability.runtime import ORDER, runtime
from flask_stability.server.process import process
from flask_stability.wsgi import last_good

app = Flask("forking", instance_path=sys.argv[1])
app.config.update(STABILITY_DB_URL=f"sqlite:///{sys.argv[1]}/forking.db", STABILITY_DB_MAX_SIZE=1)
stability = StabilityExt(app)
assert set(runtime.parts) == set(ORDER), set(ORDER) - set(runtime.parts)
memory.resident()
try:
    1 / 0
except ZeroDivisionError as error:
    report.record(error)
state = app.extensions["stability"]
connection = state.pool.connection()
connection.cursor().execute("SELECT 1")
mine = request.RequestRecord({}, 1)
other = request.RequestRecord({}, 2)
request.inflight[threading.get_ident()] = mine

held, end = threading.Barrier(2), threading.Event()
locks = [runtime._making, apps.lock, state._lock, state.pool.inventory.lock, runtime.my_row().lock, refused._lock,
         runtime.parts["stacks"].lock, runtime.parts["logs"].storms._lock, runtime.parts["kept_answers"].lock,
         *(handler.lock for handler in runtime.parts["logs"].handlers.values())]

def hold():
    for lock in locks:
        lock.acquire()
    request.inflight[threading.get_ident()] = other
    held.wait()
    end.wait()

thread = threading.Thread(target=hold, daemon=True)
thread.start()
held.wait()
before = {"row": runtime.row, "prefix": mine.id, "statm": memory._statm.descriptor}

def look():
    logs.error("from_the_child")
    stability.declare_broken("the child's")
    refused.count("x", "192.0.2.1", 0.0)
    found = {"row": runtime.my_row() is not before["row"], "id": mine.id != before["prefix"],
             "in_flight": request.in_flight() == [mine], "resident": memory.resident() > 0,
             "exceptions": runtime.parts["exceptions"].seen == {}, "monitor": apps.monitor is None,
             "guard": process.guard is None, "answers": last_good._of(app) is not None}
    with app.app_context(), stability.connection() as own:
        cursor = own.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        found["pool"] = state.pool.stats()["pool_in_use"] == 1
    return found

pid = os.fork()
if not pid:
    code = 1
    try:
        os.write(1, json.dumps(look()).encode() + b"\\n")
        code = 0
    finally:
        os._exit(code)
_, status = os.waitpid(pid, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
parent = {"row": runtime.row is before["row"], "id": mine.id == before["prefix"],
          "in_flight": len(request.in_flight()) == 2, "statm": memory._statm.descriptor == before["statm"],
          "exceptions": len(runtime.parts["exceptions"].seen) == 1, "broken": runtime.broken == "",
          "pool": state.pool.inventory.taken == 1}
print(json.dumps(parent))
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.timeout(300)
def test_a_child_forked_while_threads_hold_every_lock_has_its_own(tmp_path: Path) -> None:
    """It waits for no lock, writes into no row, speaks on no connection of its parent's; the parent loses nothing."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)], capture_output=True,
                          text=True, timeout=240, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    child, parent = map(json.loads, done.stdout.splitlines())
    assert all(child.values()), child
    assert all(parent.values()), parent
    assert "from_the_child" in done.stderr
