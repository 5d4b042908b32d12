"""The ledger counts a finished unit of work once, whatever happened in between."""

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.errors import UserError
from sdzero.ledger import Ledger


def test_a_unit_recorded_again_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    ledger.record("collect", "batch-0", responses=4, sampled_tokens=100, seconds=1.5)
    ledger.record("distill", "batch-0", responses=2, sampled_tokens=30, trained_tokens=30, teacher_tokens=70)
    ledger.record("collect", "batch-0", responses=4, sampled_tokens=90, seconds=1.0)
    ledger.record("collect", "batch-1", responses=1, sampled_tokens=10, seconds=0.5)
    for read in (ledger, Ledger(path)):
        assert read.totals() == {
            "responses": 7,
            "sampled_tokens": 130,
            "trained_tokens": 30,
            "teacher_tokens": 70,
            "seconds": 1.5,
            "device_seconds": 1.5,
            "joules": None,
        }
        assert list(read.by_stage()) == ["collect", "distill"]
        assert read.by_stage()["collect"]["sampled_tokens"] == 100


def test_the_budget_object(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("collect", "a", responses=3, sampled_tokens=10)
    ledger.record("evaluate", "a", responses=50, sampled_tokens=900)
    budget = ledger.budget_json(["collect", "srt"])
    counts = {"responses", "sampled_tokens", "trained_tokens", "seconds", "device_seconds", "joules"}
    assert set(budget) == counts | {"energy", "by_stage"}
    assert (budget["responses"], budget["sampled_tokens"], budget["joules"]) == (3, 10, None)
    assert list(budget["by_stage"]) == ["collect", "srt"]
    assert budget["by_stage"]["srt"]["responses"] == 0
    assert ledger.budget_json()["responses"] == 53
    assert ledger.budget_json([])["responses"] == 0


def test_energy_is_told_only_when_all_of_it_was_measured(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.record("collect", "a", joules=2.0)
    ledger.record("collect", "b", joules=3.0)
    assert ledger.totals()["joules"] == 5.0
    ledger.record("srt", "a")
    assert ledger.totals()["joules"] is None
    assert ledger.by_stage()["collect"]["joules"] == 5.0


@pytest.mark.parametrize(
    "torn", [b'{"stage": "co', b'{"stage": "collect", "key"\n', b"\x00\x00\x00", b"{}\n"]
)
def test_a_torn_last_line_is_dropped_and_said(
    tmp_path: Path, torn: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).record("collect", "a", responses=1)
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(path)
    assert "torn last line" in caplog.text
    assert path.read_bytes() == whole
    ledger.record("collect", "b", responses=1)
    assert Ledger(path).totals()["responses"] == 2


def test_damage_elsewhere_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path).record("collect", "a", responses=1)
    path.write_bytes(b"garbage\n" + path.read_bytes())
    with pytest.raises(UserError, match=r"ledger\.jsonl: line 1"):
        Ledger(path)


def test_what_cannot_be_recorded(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with pytest.raises(ValueError, match="negative counts: responses"):
        Ledger(path).record("collect", "a", responses=-1)
    assert not path.exists()
    with pytest.raises(UserError, match="cannot be written"):
        Ledger(tmp_path / "no" / "folder").record("collect", "a")
    with pytest.raises(UserError, match="cannot be read"):
        Ledger(tmp_path)


records = st.lists(
    st.tuples(st.sampled_from(["collect", "srt"]), st.text(max_size=3), st.integers(0, 1000)), max_size=8
)


@given(rows=records, cut=st.integers(0, 400))
def test_a_resumed_stage_never_counts_twice(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, int]], cut: int
) -> None:
    """Kill after any byte, then do the whole stage again: the counts are those of one pass."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.jsonl"
    rows = [(s, k.encode("utf-8", "ignore").decode(), n) for s, k, n in rows]
    first = Ledger(path)
    for stage, key, count in rows:
        first.record(stage, key, responses=count)
    if path.exists():
        path.write_bytes(path.read_bytes()[:cut])
    again = Ledger(path)
    for stage, key, count in rows:
        again.record(stage, key, responses=count)
    last = {(stage, key): count for stage, key, count in rows}
    assert Ledger(path).totals()["responses"] == sum(last.values())
