"""Reads what was appended to a JSONL file since the last look, without touching the file."""

import json
import os
from pathlib import Path
from typing import Any


class Tail:
    """The rows of a file that grows, a part at each look.

    A file that was replaced, or is shorter than before, is read from its start again: `started_over` is then
    true for the rows that `read` gives. A last line without its end is left for the next look. A line that
    is no JSON object is passed over: whoever watches a run does not mend it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.started_over = False
        self._offset = 0
        self._inode: int | None = None

    def read(self) -> list[dict[str, Any]]:
        """The rows since the last look; none for a file that is not there."""
        self.started_over = False
        try:
            with self.path.open("rb") as file:
                inode, size = _identity(file.fileno())
                if self._inode is not None and (inode != self._inode or size < self._offset):
                    self._offset, self.started_over = 0, True
                self._inode = inode
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [row for row in map(_object, whole.splitlines()) if row is not None]


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None
