"""Entries, and how two lists of them are compared."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from entries import Entry, read_entries, regressions

ROOT = Path(__file__).resolve().parents[2]


def entry(name: str, ratio: float, better: Any = "higher", target: float | None = None) -> Entry:
    return Entry(name, ratio, target, better, 5, {"cores": 2})


@pytest.mark.parametrize(
    ("ratio", "better", "target", "reached"),
    [
        (2.0, "higher", 2.0, True),
        (1.99, "higher", 2.0, False),
        (1.3, "lower", 1.3, True),
        (1.31, "lower", 1.3, False),
        (9.0, "lower", None, None),
    ],
)
def test_a_target_is_reached_from_its_better_side(ratio, better, target, reached) -> None:
    assert entry("a", ratio, better, target).reached is reached


@pytest.mark.parametrize(
    ("better", "before", "after", "is_worse"),
    [
        ("higher", 2.0, 1.71, False),
        ("higher", 2.0, 1.69, True),
        ("higher", 2.0, 9.0, False),
        ("lower", 1.0, 1.14, False),
        ("lower", 1.0, 1.16, True),
        ("lower", 1.0, 0.1, False),
    ],
)
def test_worse_by_over_15_percent_is_a_regression(better, before, after, is_worse) -> None:
    found = regressions([entry("step", before, better)], [entry("step", after, better)])
    assert bool(found) is is_worse
    assert all(line.startswith("step: ") for line in found)


def test_what_was_not_measured_is_named_and_what_is_new_is_not() -> None:
    found = regressions([entry("old", 1.0), entry("both", 1.0)], [entry("both", 1.0), entry("new", 0.1)])
    assert found == ["old: not measured"]


def test_entries_are_stored_as_they_are_promised(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps([entry("a", 2.5, target=2.0).to_json()]))
    [row] = json.loads(file.read_text())
    assert set(row) == {"name", "ratio", "target", "better", "runs", "machine"}
    assert read_entries(file) == [entry("a", 2.5, target=2.0)]


def test_the_command_fails_for_a_worse_file_and_names_the_figure(tmp_path: Path, monkeypatch) -> None:
    import bench

    kept, worse = tmp_path / "kept.json", tmp_path / "worse.json"
    kept.write_text(json.dumps([entry("step-24m/sdft", 2.0).to_json(), entry("growth/T", 1.0).to_json()]))
    worse.write_text(json.dumps([entry("step-24m/sdft", 1.5).to_json(), entry("growth/T", 1.0).to_json()]))
    monkeypatch.setattr(bench, "STORED", kept)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--check", str(worse)])
    with pytest.raises(SystemExit) as caught:
        bench.main()
    assert "step-24m/sdft: 1.5, was 2" in str(caught.value)
    assert "growth" not in str(caught.value)
    monkeypatch.setattr(sys, "argv", ["bench.py", "--check", str(kept)])
    bench.main()


def test_the_command_says_what_there_is() -> None:
    command = [sys.executable, ROOT / "benchmarks/bench.py", "--only", "nonsense"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    for name in ("update-24m", "step-70m", "memory", "rollouts", "sandbox", "growth"):
        assert name in done.stderr
