"""Verdicts that were given before, by program, tests and limits, in one file for all workers.

Time-outs depend on how busy the machine is, and errors on us: neither is kept.
"""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.verify.verdict import Outcome, Verdict

_NOT_KEPT = (Outcome.TIMEOUT, Outcome.ERROR)
BUSY_SECONDS = 30.0


def key_of(*parts: Any) -> str:
    """A key that depends on every part (JSON-like) and on nothing else."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """Every method raises UserError if the file is no cache."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._told():
            self._database = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None)
            self._begin()

    def _begin(self) -> None:
        """Make the table. SQLite does not wait by itself while others open a new file: this does."""
        give_up = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=NORMAL")
                self._database.execute(
                    "CREATE TABLE IF NOT EXISTS verdicts (key TEXT PRIMARY KEY, outcome TEXT, detail TEXT)"
                )
                return
            except sqlite3.OperationalError as fault:
                if "locked" not in str(fault) or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def get(self, key: str) -> Verdict | None:
        """The verdict of a key, if it was given before."""
        with self._told():
            found = self._database.execute("SELECT outcome, detail FROM verdicts WHERE key = ?", (key,))
            row = found.fetchone()
            # The detail is kept as JSON: half of a surrogate pair is no text to SQLite.
            return None if row is None else Verdict(Outcome(row[0]), json.loads(row[1]))

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict, if it is of those that are kept."""
        if verdict.outcome in _NOT_KEPT:
            return
        row = (key, str(verdict.outcome), json.dumps(verdict.detail))
        with self._told():
            try:
                self._database.execute("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?)", row)
            except sqlite3.OperationalError as fault:
                # With no room the verdict holds all the same: it is found again when it is asked for again.
                if fault.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Tell the user what is wrong with the file."""
        try:
            yield
        except (sqlite3.Error, ValueError) as fault:
            raise UserError(
                f"the cache of verdicts cannot be used: {fault}",
                str(self._file),
                "delete the file; it is made again",
            ) from fault
