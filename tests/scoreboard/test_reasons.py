"""One enum says why a worker goes: in the master, in shared memory, in logs and in JSON."""

from __future__ import annotations

import json

import pytest

from flask_stability.config import Settings
from flask_stability.health import report
from flask_stability.scoreboard import (
    CRASHES,
    O_RETIRE_REASON,
    REASONS,
    STATE_READY,
    W_PID,
    W_RETIRE_REASON,
    W_STATE,
    Reason,
    Scoreboard,
)
from flask_stability.server.status import worker_block


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_the_same_after_its_way_through_shared_memory(reason: Reason) -> None:
    """And is its plain name in JSON and in a line of text."""
    board = Scoreboard.anonymous(1)
    board.rows[0].words[W_RETIRE_REASON] = reason.code
    assert Reason.of(board.rows[0].words[W_RETIRE_REASON]) is reason
    assert json.dumps({"reason": reason}) == f'{{"reason": "{reason.value}"}}'
    assert f"{reason}" == reason.value
    assert bool(reason) == (reason is not Reason.NONE)
    board.add_restart(reason, 1, 1.0, 0)
    assert board.totals().restarts == {reason.value: 1}


@pytest.mark.parametrize("word", [-1, -(2**63), len(REASONS), 2**63 - 1])
def test_a_word_that_no_reason_has_is_unknown_and_breaks_no_document(word: int) -> None:
    """A worker's memory may be overwritten by a faulty C extension; /health and `status` still answer."""
    board = Scoreboard.anonymous(1)
    row = board.allocate(1)
    assert row is not None
    row.words[W_PID], row.words[W_STATE], row.words[W_RETIRE_REASON] = 7, STATE_READY, word
    assert Reason.of(word) is Reason.UNKNOWN
    assert worker_block(row, 0)["retiring"] == "unknown"
    row.words[W_RETIRE_REASON], row.orders[O_RETIRE_REASON] = 0, Reason.SCALE.code
    assert worker_block(row, 0)["retiring"] == "scale"
    row.words[W_RETIRE_REASON] = word
    assert "unknown" in json.dumps(report.build(board, Settings()))


def test_codes_stay_and_what_counts_as_a_crash_is_known() -> None:
    """A command line of the same format reads what an older master wrote."""
    assert [Reason.NONE.code, Reason.UNKNOWN.code, Reason.LEAKED_CONNECTIONS.code] == [0, 18, 20]
    assert set(Reason) > CRASHES
    assert Reason.ASKED not in CRASHES
