"""The durations of a worker's requests: a histogram of octaves per route, for the comparison of releases."""

from __future__ import annotations

from collections.abc import Iterator

from .primitives import BUCKETS, ENTRY_WORDS, OTHER, EndpointTable, Entry

OCTAVES = (BUCKETS + 2) // 4 + 1  #: one below 66 µs, one for each doubling, one above 137 s
#: The octave of each bucket of the latency histogram.
OCTAVE_OF_BUCKET = bytes((bucket + 3) // 4 for bucket in range(BUCKETS))


def times_words(endpoints: int) -> int:
    """Return the words of the table for so many endpoints, plus one entry for requests whose time means nothing."""
    return (endpoints + 1) * OCTAVES


def place_of(base: int) -> int:
    """Return the first word of the endpoint whose entry begins at word `base` of the row's entries."""
    return base // ENTRY_WORDS * OCTAVES


def by_route(endpoints: EndpointTable, entries: memoryview, times: memoryview
             ) -> Iterator[tuple[tuple[str, str], Entry, tuple[int, ...]]]:
    """Yield each route's (method, endpoint), entry, and number of requests by octave of duration."""
    last = len(entries) // ENTRY_WORDS - 1
    numbers = times.tolist()
    for number, (key, entry) in enumerate(endpoints.items(entries)):
        start = (last if key == OTHER else number) * OCTAVES
        yield key, entry, tuple(numbers[start:start + OCTAVES])
