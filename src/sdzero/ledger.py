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
from sdzero.energy import Meter, Stopwatch, sources_of, total
from sdzero.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """What some work took. `joules` is None where the energy was not measured (`sdzero.energy`);
    `device_seconds` are seconds times the devices that the run held.

    `trained_tokens` are target tokens of a loss, counted once per epoch; `teacher_tokens` are tokens
    that the teacher read.
    """

    responses: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    teacher_tokens: int = 0
    seconds: float = 0.0
    joules: float | None = None
    device_seconds: float = 0.0


def _sum(parts: Iterable[Counts]) -> Counts:
    """Add up. The energy is None unless there are parts and every one measured it."""
    listed = list(parts)
    return Counts(
        responses=sum(part.responses for part in listed),
        sampled_tokens=sum(part.sampled_tokens for part in listed),
        trained_tokens=sum(part.trained_tokens for part in listed),
        teacher_tokens=sum(part.teacher_tokens for part in listed),
        seconds=sum(part.seconds for part in listed),
        joules=total(part.joules for part in listed) if listed else None,
        device_seconds=sum(part.device_seconds for part in listed),
    )


class Ledger:
    """The ledger of one run, kept as JSONL at `path`; each record is on disk when `record` returns.

    `meter` measures the energy of what is timed by `start`; `devices` are what the run holds while it works.
    """

    def __init__(self, path: Path, meter: Meter | None = None, devices: int = 1) -> None:
        """Read what is there. A torn last line, left by a process killed while writing, is dropped.

        Raises:
            UserError: the file cannot be read, or a line other than the last is damaged.
        """
        self.path, self._meter, self._devices = path, meter, devices
        self._entries: dict[tuple[str, str], Counts] = {}
        self._energy: dict[tuple[str, str], str] = {}
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
        counts = Counts(
            responses,
            sampled_tokens,
            trained_tokens,
            teacher_tokens,
            seconds,
            joules,
            device_seconds=seconds * self._devices,
        )
        negative = [name for name, value in asdict(counts).items() if value is not None and value < 0]
        if negative:
            raise ValueError(f"negative counts: {', '.join(negative)}")
        energy = {} if joules is None or self._meter is None else {"energy": self._meter.sources}
        if ranks.is_first():
            self._append({"stage": stage, "key": key, **asdict(counts), **energy})
        self._keep(stage, key, counts, energy.get("energy"))

    def _keep(self, stage: str, key: str, counts: Counts, energy: str | None) -> None:
        self._entries[stage, key] = counts
        self._energy.pop((stage, key), None)
        if energy is not None:
            self._energy[stage, key] = energy

    def start(self) -> Stopwatch:
        """A clock for what is to be recorded: seconds, and joules where they can be measured."""
        return Stopwatch(self._meter)

    def energy(self, stages: Iterable[str] | None = None) -> str:
        """What the joules of these stages, or of all, were measured by: `nvml`, `rapl`, `nvml+rapl`, or
        several of these where a run went on on another machine; `none` unless all was measured."""
        chosen = None if stages is None else set(stages)
        return sources_of(
            self._energy.get(key) for key in self._entries if chosen is None or key[0] in chosen
        )

    def joules(self, *stages: str) -> float | None:
        """The joules of these stages together; None unless all that they recorded was measured."""
        return _sum(counts for (stage, _), counts in self._entries.items() if stage in stages).joules

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
        return {**total, "energy": self.energy(parts), "by_stage": parts}

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
                energy = row.pop("energy", None)
                # Rows of earlier versions: of one process.
                row.setdefault("device_seconds", row.get("seconds", 0.0))
                self._keep(str(stage), str(key), Counts(**row), energy)
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
