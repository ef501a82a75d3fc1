"""From single results to a status, on every sequence of results."""

from __future__ import annotations

from itertools import product

import pytest

from flask_stability.health.state import FAIL, PASS, WARN, CheckState, worst


def _down(results: tuple[bool, ...], threshold: int, recovery: int) -> bool:
    """The rule in the words of its definition: the last run that was long enough decides."""
    down, run, last = False, 0, True
    for ok in results:
        run = run + 1 if ok == last else 1
        last = ok
        if not ok and run >= threshold:
            down = True
        if ok and run >= recovery:
            down = False
    return down


@pytest.mark.parametrize(("threshold", "recovery"), [(3, 2), (1, 1), (2, 3)])
def test_every_sequence_of_results_up_to_length_eight(threshold: int, recovery: int) -> None:
    """Three failures in a row fail, two successes pass, the opposite result starts the count anew."""
    for length in range(9):
        for results in product((True, False), repeat=length):
            state = CheckState()
            for ok in results:
                state = state.after(ok, threshold=threshold, recovery=recovery)
            assert state.down is _down(results, threshold, recovery), results


def test_only_a_critical_check_can_fail() -> None:
    """Others warn; a success with a worry warns."""
    down = CheckState(down=True)
    assert down.status(critical=True) == FAIL
    assert down.status(critical=False) == WARN
    assert CheckState().status(critical=True, worried=True) == WARN
    assert worst() == PASS
    assert worst(PASS, FAIL, WARN) == FAIL
