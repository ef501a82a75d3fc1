"""How long requests took, by route, in octaves."""

from __future__ import annotations

import itertools

from flask_stability.scoreboard import REFUSED, Scoreboard, bucket_bound
from flask_stability.scoreboard.primitives import BUCKETS
from flask_stability.scoreboard.times import OCTAVE_OF_BUCKET, OCTAVES, by_route


def test_each_octave_ends_at_twice_the_one_before() -> None:
    """All buckets have one, in order."""
    assert list(OCTAVE_OF_BUCKET) == sorted(OCTAVE_OF_BUCKET)
    assert OCTAVE_OF_BUCKET[-1] == OCTAVES - 1
    ends = [bucket_bound(bucket) for bucket in range(BUCKETS - 1)
            if OCTAVE_OF_BUCKET[bucket] != OCTAVE_OF_BUCKET[bucket + 1]]
    assert all(later == 2 * sooner for sooner, later in itertools.pairwise(ends))


def test_a_row_counts_times_by_route() -> None:
    """What was refused on purpose says nothing of a route; entries beyond the last have one in common."""
    row = Scoreboard.anonymous(1).allocate(1)
    assert row is not None
    for seconds in (0.00001, 0.0012, 0.0013, 1.0, 1000.0):
        row.observe("GET", "pay", 200, int(seconds * 1e9))
    row.observe("GET", "pay", REFUSED, 5_000_000_000)
    for number in range(300):
        row.observe("GET", f"many{number}", 200, 1_000_000)
    found = {key: (sum(entry[2:]), times) for key, entry, times in by_route(row.endpoints, row.entries, row.times)}
    number, times = found["GET", "pay"]
    assert (number, sum(times), times[0], times[-1], max(times)) == (6, 5, 1, 1, 2)
    assert sum(sum(times) for _, times in found.values()) == 305
    assert sum(found["", "other"][1]) == found["", "other"][0] > 100
    row.forget_requests()
    assert (row.requests, sum(row.times.tolist())) == (0, 0)
