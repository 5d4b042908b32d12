"""Responses, tokens, seconds and joules: counted once, here.

Every count is kept under a stage and a key (one key for one finished unit of work, such as a batch).
Recording a key again replaces what it held, so that a stage that is resumed never counts twice.

Of a run's several processes each records the same whole counts, and the first one writes them.
"""

import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from sdzero import ranks
from sdzero.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """What some work took. `joules` is None where the energy was not measured.

    `trained_tokens` are target tokens of a loss, counted once per epoch; `teacher_tokens` are tokens
    that the teacher read.
    """

    responses: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    joules: float | None = None


def _sum(parts: Iterable[Counts]) -> Counts:
    """Add up. The energy is None unless every part measured it: half a sum would look like a whole."""
    listed = list(parts)
    measured = [part.joules for part in listed if part.joules is not None]
    return Counts(
        responses=sum(part.responses for part in listed),
        sampled_tokens=sum(part.sampled_tokens for part in listed),
        trained_tokens=sum(part.trained_tokens for part in listed),
        teacher_tokens=sum(part.teacher_tokens for part in listed),
        seconds=sum(part.seconds for part in listed),
        joules=sum(measured) if measured and len(measured) == len(listed) else None,
    )


class Ledger:
    """The ledger of one run, kept as JSONL at `path`; each record is on disk when `record` returns."""

    def __init__(self, path: Path) -> None:
        """Read what is there. A torn last line, left by a process killed while writing, is dropped.

        Raises:
            UserError: the file cannot be read, or a line other than the last is damaged.
        """
        self.path = path
        self._entries: dict[tuple[str, str], Counts] = {}
        if path.exists():
            self._read()

    def record(
        self,
        stage: str,
        key: str,
        *,
        responses: int = 0,
        sampled_tokens: int = 0,
        trained_tokens: int = 0,
        teacher_tokens: int = 0,
        seconds: float = 0.0,
        joules: float | None = None,
    ) -> None:
        """Put the counts under (stage, key), in place of what was there.

        Raises:
            ValueError: a count is negative.
            UserError: the file cannot be written.
        """
        counts = Counts(responses, sampled_tokens, trained_tokens, teacher_tokens, seconds, joules)
        negative = [name for name, value in asdict(counts).items() if value is not None and value < 0]
        if negative:
            raise ValueError(f"negative counts: {', '.join(negative)}")
        if ranks.is_first():
            self._append({"stage": stage, "key": key, **asdict(counts)})
        self._entries[stage, key] = counts

    def totals(self) -> dict[str, Any]:
        """The sum over all stages, by the names of `Counts`."""
        return asdict(_sum(self._entries.values()))

    def by_stage(self) -> dict[str, dict[str, Any]]:
        """The sum of each stage, in the order in which the stages were first recorded."""
        return {
            stage: asdict(self._stage(stage)) for stage in dict.fromkeys(stage for stage, _ in self._entries)
        }

    def budget_json(self, stages: Sequence[str] | None = None) -> dict[str, Any]:
        """The `budget` object of `results.json`: over `stages`, or over all of them.

        A stage that recorded nothing stands there with zeros.
        """
        recorded = self.by_stage()
        parts = {stage: asdict(self._stage(stage)) for stage in (recorded if stages is None else stages)}
        total = asdict(_sum(c for (stage, _), c in self._entries.items() if stage in parts))
        del total["teacher_tokens"]  # stands under by_stage only: it is no part of the sampling budget
        return {**total, "by_stage": parts}

    def _stage(self, name: str) -> Counts:
        return _sum(counts for (stage, _), counts in self._entries.items() if stage == name)

    def _append(self, row: dict[str, Any]) -> None:
        """Append one line and make it durable; a line that could not be written whole is taken back."""
        line = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
        try:
            with self.path.open("ab", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    if file.write(line) != len(line):
                        raise OSError("the line was written only in part")
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(size)
                    raise
        except OSError as error:
            raise UserError(
                f"the ledger cannot be written ({error})", str(self.path), "check the disk and permissions"
            ) from error

    def _read(self) -> None:
        try:
            data = self.path.read_bytes()
        except OSError as error:
            raise UserError(
                f"the ledger cannot be read ({error.strerror})", str(self.path), "check its permissions"
            ) from error
        lines = data.split(b"\n")
        torn = lines.pop()
        offset = 0
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                stage, key = row.pop("stage"), row.pop("key")
                self._entries[str(stage), str(key)] = Counts(**row)
            except (ValueError, KeyError, TypeError, AttributeError):
                if number == len(lines) and not torn:
                    torn = line
                    break
                raise UserError(
                    f"the ledger is damaged (expected {', '.join(f.name for f in fields(Counts))})",
                    f"{self.path}: line {number}",
                    "restore the file from a copy, or start the run in a new folder",
                ) from None
            offset += len(line) + 1
        if torn:
            log.warning("%s: dropped a torn last line of %d bytes", self.path, len(torn))
            if ranks.is_first():
                os.truncate(self.path, offset)
