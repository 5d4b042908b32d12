"""How fast a part of a run goes, from what it says of its progress, and how long the rest will take."""

import time
from collections.abc import Callable

UNKNOWN = "-"


class Pace:
    """The time left is told from a part's first note on: what was found finished when a run was resumed, or
    was finished within the first note, took an unknown time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.part = ""
        self.done = self.total = 0
        self._started, self._first = 0.0, 0

    def note(self, part: str, done: int, total: int) -> None:
        """Take note of progress."""
        if part != self.part:
            self.part, self._started, self._first = part, self._clock(), done
        self.done, self.total = done, total

    def seconds_left(self) -> float | None:
        """Of the part that was noted last; None as long as it was noted only once."""
        if self.done <= self._first:
            return None
        return (self._clock() - self._started) / (self.done - self._first) * (self.total - self.done)


def duration(seconds: float | None) -> str:
    """A time for people: `45 s`, `12 min 05 s`, `3 h 20 min`, `2 d 04 h`."""
    if seconds is None:
        return UNKNOWN
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02d} h"
