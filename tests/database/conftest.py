"""What the tests of the database share: patience of the product that a slow machine does not use up."""

from __future__ import annotations

import pytest

from flask_stability.database import availability, guarded_calls


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ping or a rollback that a busy machine holds up is not cut off; whoever tests the cut says how soon."""
    monkeypatch.setattr(guarded_calls, "PATIENCE", 30.0)


@pytest.fixture
def patient_keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that a busy machine holds up is not taken for one that does not answer."""
    monkeypatch.setattr(availability, "PROBE_TIMEOUT", 30.0)
    monkeypatch.setattr(availability, "GRACE", 30.0)
