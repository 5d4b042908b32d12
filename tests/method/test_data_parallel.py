"""Training with two processes, against one process on the same questions: same weights, same counts.

Float64, so that what the order of a sum changes is far below what a lost or doubled gradient would.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data_parallel_work import (
    assert_equal_weights,
    ledger_of,
    phase_2,
    srt,
    with_exact_norms,
    with_fsdp,
    without_fsdp,
)
from in_ranks import in_ranks
from sdzero.method.data_parallel import keep_losses_out, let_losses_in
from sdzero.recipe_lora import LoraSettings
from support import read_jsonl


def test_phase_2_is_that_of_one_process(tmp_path: Path) -> None:
    """Batches of 4, the last of 2; two micro-batches a process; rehearsal, and a sync after two steps."""
    (alone,) = in_ranks(phase_2, tmp_path / "one", processes=1)
    first, second = in_ranks(phase_2, tmp_path / "two")
    assert_equal_weights(first["student"], second["student"], 0.0)
    assert_equal_weights(first["teacher"], second["teacher"], 0.0)
    assert_equal_weights(first["student"], alone["student"], 1e-10)
    assert_equal_weights(first["teacher"], alone["teacher"], 1e-10)
    assert first["syncs"] == second["syncs"] == alone["syncs"] == 1
    assert any(not torch.equal(alone["start"][name], w) for name, w in alone["student"].items())
    for own in (first, second):
        for row, expected in zip(own["metrics"], alone["metrics"], strict=True):
            assert row == pytest.approx(expected, rel=1e-6)
    assert second["reported"] == []
    assert [row["step"] for row in first["reported"]] == [1, 2, 3]
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")
    for step in range(3):
        name = f"distill/rollouts/step-{step:06d}.jsonl"
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    asked = [
        row["question"]
        for file in sorted((tmp_path / "two/distill/rollouts").glob("*.jsonl"))
        for row in read_jsonl(file)
    ]
    assert len(asked) == len(set(asked)) == 10, "every question once, none twice, none lost"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [3, 4])
def test_more_processes_are_one_too(tmp_path: Path, processes: int) -> None:
    """Two questions a process and step, and a last batch that does not fill them."""
    work = partial(with_exact_norms, phase_2, batch_size=2 * processes, micro_batch_size=2)
    (alone,) = in_ranks(work, tmp_path / "one", processes=1)
    for own in in_ranks(work, tmp_path / "more", processes=processes):
        assert_equal_weights(own["student"], alone["student"], 1e-10)
        for row, expected in zip(own["metrics"], alone["metrics"], strict=True):
            assert row == pytest.approx(expected, rel=1e-6)
    assert ledger_of(tmp_path / "more") == ledger_of(tmp_path / "one")


@pytest.mark.parametrize(
    ("setting", "limit"),
    [
        (without_fsdp, None),
        (without_fsdp, 30),
        pytest.param(with_fsdp, 30, marks=pytest.mark.slow),
    ],
    ids=["ddp", "ddp in parts", "fsdp2 in parts"],
)
def test_srt_is_that_of_one_process(tmp_path: Path, setting: Any, limit: int | None) -> None:
    """Nine sequences in batches of 4: to the last batch of one, one of the processes has nothing to give."""
    (alone,) = in_ranks(srt, tmp_path / "one", limit, processes=1)
    first, second = in_ranks(partial(setting, srt), tmp_path / "two", limit)
    assert first["sharded"] == (setting is with_fsdp)
    assert_equal_weights(first["student"], second["student"], 0.0)
    assert_equal_weights(first["student"], alone["student"], 1e-10)
    assert first["steps"] == alone["steps"] == 3
    saved = load_file(tmp_path / "two/model/model.safetensors")
    assert saved.keys() == load_file(tmp_path / "one/model/model.safetensors").keys()
    assert all(torch.equal(saved[name], first["student"][name]) for name in saved)
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")
    assert [row["loss"] for row in first["metrics"]] == pytest.approx(
        [row["loss"] for row in alone["metrics"]], rel=1e-6
    )
    assert first["forward"] == second["forward"] == alone["forward"] == "the model's own"


@pytest.mark.parametrize(
    "setting", [without_fsdp, pytest.param(with_fsdp, marks=pytest.mark.slow)], ids=["ddp", "fsdp2"]
)
def test_three_steps_are_two_and_one(tmp_path: Path, setting: Any) -> None:
    """Stopped after two steps of two processes, with the teacher synced in between, and gone on with."""
    expected, _ = in_ranks(partial(setting, phase_2), tmp_path / "whole")
    cut = in_ranks(partial(setting, phase_2, stop_after=2), tmp_path / "cut")
    assert [row["step"] for row in cut[0]["reported"]] == [1, 2]
    resumed = in_ranks(partial(setting, phase_2), tmp_path / "cut")
    for own in resumed:
        assert_equal_weights(own["student"], expected["student"], 0.0)
        assert_equal_weights(own["teacher"], expected["teacher"], 0.0)
    assert [row["step"] for row in resumed[0]["metrics"]] == [3]
    assert ledger_of(tmp_path / "cut") == ledger_of(tmp_path / "whole")


def test_sharded_phase_2_is_that_of_one_process(tmp_path: Path) -> None:
    """FSDP2: responses, loss, gradients, weights after three steps, and the teacher synced from shards."""
    (alone,) = in_ranks(phase_2, tmp_path / "one", processes=1)
    own = in_ranks(partial(with_fsdp, phase_2), tmp_path / "two")
    for found in own:
        assert found["sharded"]
        assert_equal_weights(found["student"], alone["student"], 1e-10)
        assert_equal_weights(found["teacher"], alone["teacher"], 1e-10)
        for row, expected in zip(found["metrics"], alone["metrics"], strict=True):
            assert row == pytest.approx(expected, rel=1e-6)
    assert ledger_of(tmp_path / "two") == ledger_of(tmp_path / "one")


class Wrapper(torch.nn.Module):
    """Stands for DDP and its like, which act when their forward is called."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module
        self.entered = 0

    def forward(self, *args: Any, **keywords: Any) -> Any:
        self.entered += 1
        return self.module(*args, **keywords)


def test_a_loss_is_run_inside_the_wrappers_forward() -> None:
    """Until the model has its own forward again, which stays what it is for all other calls."""
    model = torch.nn.Linear(2, 1)
    inputs = torch.ones(1, 2)
    expected = model(inputs)
    let_losses_in(model)
    wrapper = Wrapper(model)
    loss = wrapper(loss=lambda: 3 * model.weight.sum())
    assert wrapper.entered == 1
    assert torch.equal(loss, 3 * model.weight.sum())
    assert torch.equal(wrapper(inputs), expected)
    keep_losses_out(model)
    assert "forward" not in model.__dict__
    with pytest.raises(TypeError):
        model(loss=lambda: 0)


def test_phase_2_with_adapters_is_that_of_one_process(tmp_path: Path) -> None:
    """The teacher's adapter stands in the model that the wrapper exchanges gradients for."""
    work = partial(phase_2, lora=LoraSettings(rank=4, alpha=8))
    (alone,) = in_ranks(work, tmp_path / "one", processes=1)
    first, second = in_ranks(work, tmp_path / "two")
    for who in ("student", "teacher"):
        assert_equal_weights(first[who], second[who], 0.0)
        assert_equal_weights(first[who], alone[who], 1e-10)
    changed = {name for name, w in alone["student"].items() if not torch.equal(alone["start"][name], w)}
    assert changed
    assert all("lora_" in name for name in changed)
