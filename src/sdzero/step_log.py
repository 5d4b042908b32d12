"""The log of a training: its rows once each, in the order of the steps, however often it was resumed."""

import json
from typing import Any

from sdzero import ranks
from sdzero.errors import UserError
from sdzero.run_dir import RunDir


class StepLog:
    """Appends rows with a `step` to a JSONL file of the run, each with the `part` of the stage it is of.

    A killed process may have logged steps beyond its last checkpoint. They are made again, so the first
    row that a resumed process appends takes the place of those from its step on.
    """

    def __init__(self, run: RunDir, relative: str, part: int = 0) -> None:
        self._run = run
        self._relative = relative
        self._part = part
        self._checked = False

    def append(self, values: dict[str, Any]) -> None:
        """Append one row. Of several processes the first writes, and none waits."""
        if not ranks.is_first():
            return
        if not self._checked:
            self._cut((self._part, int(values["step"])))
            self._checked = True
        self._run.append_jsonl(self._relative, {"part": self._part} | values)

    def _cut(self, start: tuple[int, int]) -> None:
        file = self._run.path(self._relative)
        if not file.exists():
            return
        # What stands behind the last line end is the half line of a killed process.
        lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        kept = [line for number, line in enumerate(lines, 1) if self._place(line, number) < start]
        if len(kept) < len(lines):
            with self._run.replacing(self._relative) as beside:
                beside.write_bytes("".join(f"{line}\n" for line in kept).encode())

    def _place(self, line: str, number: int) -> tuple[int, int]:
        try:
            row = json.loads(line)
            return int(row["part"]), int(row["step"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                "the log of a training is damaged",
                f"{self._run.path(self._relative)}: line {number}",
                "remove the line, or restore the file from a copy: nothing but people reads the log",
            ) from None
