"""The table of the shared memory: which word is where, and what follows from it."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest

import flask_stability
from flask_stability import scoreboard
from flask_stability.scoreboard import Scoreboard, layout
from flask_stability.scoreboard.areas import PAGE, Area, Part, Words

PACKAGE = Path(flask_stability.__file__).parent


@pytest.mark.parametrize("part", layout.PARTS, ids=lambda part: part.title)
def test_areas_are_aligned_and_none_overlaps_another(part: Part) -> None:
    """A word that crossed a boundary of 8 bytes could be torn."""
    ends = [(part.starts[area.name], part.starts[area.name] + area.size) for area in part.areas]
    assert all(start % 8 == 0 for start, _ in ends)
    assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    assert part.size % PAGE == 0
    assert ends[-1][1] <= part.size


def test_no_row_shares_a_byte_with_another_or_with_the_master() -> None:
    """All areas are filled, each with a value of its own; each still has it then."""
    board = Scoreboard.anonymous(3)
    areas = [board.master.words, board.master.reasons, *(sums.all for sums in board.master.sums)]
    for row in board.rows:
        areas += [row.words, row.orders, row.histogram, row.entries, row.ended]
    for number, area in enumerate(areas):
        for index in range(len(area)):
            area[index] = number + 1
    for row in board.rows:
        row.floats[0] = 0.5
        for blob in (row.checks, row.exceptions, row.hung):
            assert blob.write(b"x" * blob.capacity)
    for blob in (board.master.restarts, board.master.shared, board.master.exceptions, board.master.mutes):
        assert blob.write(b"y" * blob.capacity)
    for number, area in enumerate(areas):
        assert set(area.tolist()) == {number + 1}, number
    assert {row.checks.read()[:1] for row in board.rows} == {b"x"}


@pytest.mark.parametrize("table", layout.TABLES, ids=lambda table: table.title)
def test_each_word_has_a_name_a_meaning_and_somebody_who_uses_it(table: Words) -> None:
    """A word that no other module names is none."""
    found = layout.named(table)
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py") if path.name != "layout.py")
    assert len({meaning for _, meaning in found}) == len(found)
    for index, (name, _) in enumerate(found):
        assert getattr(scoreboard, name) == index
        assert re.search(rf"\b{name}\b", code), name


def test_a_word_more_is_one_line_and_another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line of another version refuses the board rather than read another word."""
    monkeypatch.setattr(layout.MASTER, "meanings", list(layout.MASTER.meanings))
    before = layout.magic()
    assert before == layout.MAGIC
    monkeypatch.setattr(layout, "M_NEW", layout.MASTER.word("something new"), raising=False)
    assert layout.named(layout.MASTER)[-1] == ("M_NEW", "something new")
    assert layout.magic() != before
    assert "``M_NEW``" in layout.documented()


def test_a_counter_of_a_worker_that_is_gone_is_in_the_totals() -> None:
    """Every one of them; what is no counter is forgotten with its worker."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    for index in range(len(layout.WORKER.meanings)):
        row.words[index] = 7
    board.release(row)
    assert board.totals().counters == dict.fromkeys(layout.COUNTERS, 7)


def test_a_table_without_room_says_which_to_enlarge() -> None:
    """At import, not by words that share a place."""
    words = Words("Few words", "X_", writer="nobody", room=1)
    assert words.word("first") == 0
    with pytest.raises(ValueError, match="Few words: all 1 words are taken; raise `room`"):
        words.word("second")


def test_a_part_of_odd_sizes_is_whole() -> None:
    """Areas of any size begin at multiples of 8."""
    part = Part("Odd", Area("a", 3, "w", "m"), Area("b", 8, "w", "m"))
    view = memoryview(bytearray(part.size))
    areas = part.cut(view, 0)
    assert part.starts == {"a": 0, "b": 8}
    assert (len(areas["a"]), len(areas["b"])) == (3, 8)
