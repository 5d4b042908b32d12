"""Several processes in one run: what they tell each other, who writes, and how they end."""

import time
from functools import partial
from pathlib import Path

import pytest

from in_ranks import in_ranks
from ranks_work import fail, measure, sample, talk, write
from sdzero import ranks
from sdzero.errors import UserError
from sdzero.process_group import PeerError
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import RunDir
from support import micro_recipe, read_jsonl


def test_one_process_is_told_what_it_says() -> None:
    assert (ranks.rank(), ranks.count(), ranks.is_first()) == (0, 1, True)
    assert ranks.gather("a") == ["a"]
    assert ranks.from_first(lambda: 3) == 3
    assert ranks.whole_of_shares(ranks.own_share([1, 2, 3])) == [1, 2, 3]
    assert ranks.add_up([1.5, 2.0]) == [1.5, 2.0]
    with ranks.turn_of_first() as is_mine:
        assert is_mine


def test_processes_tell_each_other() -> None:
    first, second = in_ranks(talk)
    assert (first["rank"], first["count"]) == (0, 2)
    assert (second["rank"], second["count"]) == (1, 2)
    assert (first["share"], second["share"]) == ([0, 2, 4], [1, 3])
    for own in (first, second):
        assert own["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert own["first"] == "of 0"
        assert own["whole"] == [0, 10, 20, 30, 40]
        assert own["sum"] == [2.0, 1.0]


@pytest.mark.parametrize("questions", [5, 1])
def test_a_batch_is_shared_out_and_whole_for_all(tmp_path: Path, questions: int) -> None:
    """With one question the second process has nothing to do."""
    (alone,) = in_ranks(sample, tmp_path / "one", questions, processes=1)
    own = in_ranks(sample, tmp_path / "two", questions)
    assert [found["sampled"] for found in own] == [(questions + 1) // 2, questions // 2]
    for found in own:
        for key in ("graded", "texts", "verdicts", "ledger"):
            assert found[key] == alone[key]
    assert sum(found["graded_here"] for found in own) == alone["graded_here"]
    batches = [tmp_path / name / "batch.jsonl" for name in ("one", "two")]
    assert batches[0].read_bytes() == batches[1].read_bytes()


def test_the_first_process_writes_and_the_others_wait_for_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    found = in_ranks(write, folder, micro_recipe(tmp_path))
    for own in found:
        assert own == {"seen": False, "facts": {"by": 0}, "rows": [{"by": 0}]}
    assert read_jsonl(folder / "log.jsonl") == [{"by": 0}]
    assert [row["responses"] for row in read_jsonl(folder / "ledger.jsonl")] == [3]
    assert RunDir.unlocked(folder).is_done("collect")


def test_a_second_run_on_the_folder_is_refused(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path)
    with RunDir.open(tmp_path / "run", load_recipe(recipe, [])):
        first, second = in_ranks(write, tmp_path / "run", recipe)
    assert isinstance(first, UserError)
    assert "another process" in first.what
    assert isinstance(second, SystemExit | PeerError)


@pytest.mark.parametrize("on", [0, 1])
def test_when_one_fails_the_other_stops_with_its_reason(tmp_path: Path, on: int) -> None:
    started = time.monotonic()
    found = in_ranks(partial(fail, on, "says why"), errors=tmp_path / "errors")
    assert time.monotonic() - started < 60
    assert "the disk of this one is full" in str(found[on])
    assert isinstance(found[1 - on], Exception | SystemExit), "the other one did not go on"
    printed = (tmp_path / "errors").read_text()
    assert f"process {on} failed: the disk of this one is full" in printed + str(found[1 - on])


@pytest.mark.parametrize("on", [0, 1])
def test_when_one_is_killed_the_other_stops(tmp_path: Path, on: int) -> None:
    started = time.monotonic()
    found = in_ranks(partial(fail, on, "killed"), errors=tmp_path / "errors")
    assert time.monotonic() - started < 60
    assert isinstance(found[on], SystemExit)
    assert isinstance(found[1 - on], Exception | SystemExit), "it noticed"
    assert "is gone" in (tmp_path / "errors").read_text() + str(found[1 - on])


def test_the_energy_of_a_machine_is_counted_once(tmp_path: Path) -> None:
    tree = tmp_path / "powercap"
    (tree / "intel-rapl:0").mkdir(parents=True)
    for name, value in (("name", "package-0"), ("max_energy_range_uj", "262143328850"), ("energy_uj", "7")):
        (tree / "intel-rapl:0" / name).write_text(f"{value}\n")
    assert in_ranks(measure, tmp_path, tree) == [("rapl", pytest.approx(2.0), 3.0)] * 2
    (row,) = read_jsonl(tmp_path / "ledger.jsonl")
    assert (row["joules"], row["energy"], row["device_seconds"]) == (pytest.approx(2.0), "rapl", 3.0)
