"""What the record of an exit tells of the requests that were in flight."""

from __future__ import annotations

import pytest
from werkzeug.routing import Map, Rule

from flask_stability.scoreboard import black_box
from flask_stability.scoreboard.black_box import InFlight
from flask_stability.server.last_requests import LastRequests
from flask_stability.wsgi import routes

SECOND = 1_000_000_000


def request(path: str, started_ns: int, **more: int) -> InFlight:
    """A request in flight."""
    return InFlight(f"id{started_ns}", 1, "GET", path, -started_ns, started_ns, **more)  # type: ignore[arg-type]


def test_the_oldest_is_named_first_and_after_a_kill_for_memory_the_heaviest() -> None:
    """With its age, and with what it weighed where it did."""
    found = [request("/old", SECOND), request("/new", 9 * SECOND, grown_bytes=50),
             request("/body", 5 * SECOND, body_bytes=7)]
    told = LastRequests().in_words(found, "crash_signal", 10 * SECOND)
    assert told["in_flight_count"] == 3
    assert [one["path"] for one in told["in_flight"]] == ["/old", "/new", "/body"]
    assert told["in_flight"][0]["seconds"] == 9.0
    assert "grown_bytes" not in told["in_flight"][0]
    told = LastRequests().in_words(found, "out_of_memory", 10 * SECOND)
    assert [one["path"] for one in told["in_flight"]] == ["/new", "/body", "/old"]
    assert told["in_flight"][0]["grown_bytes"] == 50


def test_a_record_stays_short_and_a_worker_without_requests_is_told_as_ever() -> None:
    """Ten are named, all are counted."""
    told = LastRequests().in_words([request("/", number) for number in range(1, 40)], "timeout", SECOND)
    assert (told["in_flight_count"], len(told["in_flight"])) == (39, 10)
    assert LastRequests().in_words([], "crash_signal") == {}


def test_the_master_knows_a_workers_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of a reload, and where the app has converters of its own."""
    monkeypatch.setattr(black_box, "_box", black_box.BlackBox(1))
    box = black_box.current()
    assert box is not None
    reader = LastRequests()
    assert reader.route_of(request("/users/7", 1)) == ""
    box.routes.write(routes.encode(routes.of_map(Map([Rule("/users/<int:id>", endpoint="user")])), box.routes.capacity))
    assert reader.route_of(request("/users/7", 1)) == "/users/<int:id>"
    assert reader.route_of(request("/users/x", 1)) == ""
    box.routes.write(b'[["/users/<colour(\\"red\\"):id>", ["GET"], "x"], ["<<<", null, "y"], ["/b/", null, "z"]]')
    assert reader.route_of(request("/users/x", 1)) == '/users/<colour("red"):id>'
    assert reader.route_of(request("/b", 1)) == ""
    box.routes.write(b"no rules")
    assert reader.route_of(request("/users/x", 1)) == ""


def test_an_app_of_more_rules_than_fit_publishes_a_part() -> None:
    """What is left out has no route; nothing fails."""
    data = routes.encode(routes.of_map(Map([Rule(f"/rule/{number}", endpoint="x") for number in range(500)])), 4000)
    assert len(data) <= 4000
    assert routes.decode(data).of("GET", "/rule/1") == "/rule/1"
