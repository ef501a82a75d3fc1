"""The partition of the shared memory: tables of words, and consecutive areas."""

from __future__ import annotations

from dataclasses import dataclass

from .primitives import Blob

PAGE = 4096


class Words:
    """A table of words with one writing process.

    :ivar prefix: of the names of its constants.
    :ivar meanings: of each word in use.
    :ivar room: the maximum number of words.
    :ivar counters: the indices of the words that the sums include.
    """

    def __init__(self, title: str, prefix: str, *, writer: str, room: int) -> None:
        self.title, self.prefix, self.writer, self.room = title, prefix, writer, room
        self.meanings: list[str] = []
        self.counters: list[int] = []

    def word(self, meaning: str) -> int:
        """Take the next word and return its index.

        :raises ValueError: if there is no room.
        """
        if len(self.meanings) >= self.room:
            raise ValueError(f"{self.title}: all {self.room} words are taken; raise `room`")
        self.meanings.append(meaning)
        return len(self.meanings) - 1

    def counter(self, meaning: str) -> int:
        """Take the next word for a number that only grows; return its index."""
        index = self.word(meaning)
        self.counters.append(index)
        return index


@dataclass(frozen=True)
class Area:
    """A piece of the shared memory with one writing process."""

    name: str
    size: int
    writer: str
    meaning: str


def blob_area(name: str, content: int, writer: str, meaning: str) -> Area:
    """Return an area for a blob that holds up to `content` bytes."""
    return Area(name, 2 * content + Blob.HEAD, writer, meaning)


class Part:
    """Consecutive areas, each aligned to 8 bytes, all together to a page."""

    def __init__(self, title: str, *areas: Area) -> None:
        self.title, self.areas = title, areas
        self.starts: dict[str, int] = {}
        end = 0
        for area in areas:
            self.starts[area.name] = end
            end += (area.size + 7) & ~7
        self.size = (end + PAGE - 1) // PAGE * PAGE

    def cut(self, view: memoryview, start: int) -> dict[str, memoryview]:
        """Return each area of a part that begins at a byte of a mapping."""
        return {area.name: view[start + self.starts[area.name]:start + self.starts[area.name] + area.size]
                for area in self.areas}
