import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import get_scheduler

from sdzero.baselines.spending import TokenSpending, rate_factor, schedule_by_spending, steps_within
from sdzero.errors import UserError
from sdzero.run_dir import RunDir


@pytest.mark.parametrize(
    ("responses", "steps"), [(4, 1), (7, 1), (8, 2), (9, 2), (10, 3), (13, 3), (14, 4), (20, 6), (27, 7)]
)
def test_the_last_step_of_an_epoch_is_smaller(responses: int, steps: int) -> None:
    # Ten questions, four a step: steps of 4, 4, 2, 4, 4, 2, 4.
    assert steps_within(responses, 10, 4) == steps


@given(responses=st.integers(1, 500), questions=st.integers(1, 60), batch_size=st.integers(1, 40))
def test_never_more_than_the_budget_and_less_than_a_step_is_left(responses, questions, batch_size) -> None:
    epoch = [min(batch_size, questions - start) for start in range(0, questions, batch_size)]
    try:
        steps = steps_within(responses, questions, batch_size)
    except UserError:
        assert responses < epoch[0]
        return
    spent = sum(epoch[step % len(epoch)] for step in range(steps))
    assert spent <= responses
    # One may be left with less than a whole batch, though a smaller one would fit: never with more.
    assert responses - spent < batch_size


def test_a_budget_below_one_step_is_an_error_for_people() -> None:
    with pytest.raises(UserError, match=r"3 responses is less than one step of 4") as caught:
        steps_within(3, 10, 4)
    assert caught.value.where == "budget.responses"


def spending_of(folder: Path, steps: list[list[int]], amount: int) -> TokenSpending:
    folder.mkdir(exist_ok=True)
    run = RunDir.unlocked(folder)
    for number, lengths in enumerate(steps):
        rows = [{"sampled_tokens": length} for length in lengths]
        run.write_jsonl(f"sdft/rollouts/step-{number:06d}.jsonl", rows)
    return TokenSpending(run, "sdft", amount)


def test_tokens_are_counted_from_the_stored_rollouts_of_the_steps_so_far(tmp_path: Path) -> None:
    spending = spending_of(tmp_path, [[5, 7], [3], [20]], 15)
    assert [spending.through(steps) for steps in (0, 2, 1, 3)] == [0, 15, 12, 35]
    assert [spending.is_spent(steps) for steps in (0, 1, 2, 3)] == [False, False, True, True]


def test_the_expected_number_of_steps(tmp_path: Path) -> None:
    spending = spending_of(tmp_path, [[10], [20], [90]], 100)
    assert [spending.expected_steps(steps) for steps in (1, 2, 3)] == [10, 7, 3]


AT_TENTH, AT_THREE_TENTHS = (0.5 * (1 + math.cos(share * math.pi)) for share in (0.1, 0.3))
SPENT = (0, 10, 30, 65, 100)


@pytest.mark.parametrize(
    ("schedule", "warmup", "factors"),
    [
        ("constant", {}, [1, 1, 1, 1, 1]),
        ("linear", {}, [1, 0.9, 0.7, 0.35, 0]),
        ("cosine", {}, [1, AT_TENTH, AT_THREE_TENTHS, 0.5 * (1 + math.cos(0.65 * math.pi)), 0]),
        ("linear", {"warmup_steps": 2}, [0, 0.5, 1, 0.5, 0]),
        ("cosine", {"warmup_steps": 2}, [0, 0.5, 1, 0.5, 0]),
        ("constant_with_warmup", {"warmup_steps": 2}, [0, 0.5, 1, 1, 1]),
        ("linear", {"warmup_share": 0.2}, [0, 0.5, 0.875, 0.4375, 0]),
        ("linear", {"warmup_steps": 4}, [0, 0.25, 0.5, 0.75, 0]),
    ],
)
def test_the_rate_follows_the_share_that_is_spent(schedule, warmup, factors) -> None:
    for steps, factor in enumerate(factors):
        got = rate_factor(steps, lambda steps: SPENT[steps], 100, schedule, **warmup)
        assert got == pytest.approx(factor), steps


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant", "constant_with_warmup"])
def test_steps_of_equal_length_give_the_rates_of_transformers(tmp_path: Path, schedule) -> None:
    warmup = 0 if schedule == "constant" else 3
    spending = spending_of(tmp_path, [[4]] * 10, 40)

    def rates(make) -> list[float]:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        scheduler, found = make(optimizer), []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    ours = rates(lambda o: schedule_by_spending(o, spending, schedule, warmup))
    theirs = rates(lambda o: get_scheduler(schedule, o, num_warmup_steps=warmup, num_training_steps=10))
    assert ours == pytest.approx(theirs)


def test_a_restored_schedule_goes_on_with_the_same_rates(tmp_path: Path) -> None:
    spending = spending_of(tmp_path, [[10], [20], [35], [5]], 100)

    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, schedule_by_spending(optimizer, spending, "linear")

    optimizer, scheduler = make()
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.7)
    other, restored = make()
    restored.load_state_dict(scheduler.state_dict())
    other.load_state_dict(optimizer.state_dict())
    other.step()
    restored.step()
    assert other.param_groups[0]["lr"] == pytest.approx(0.35)
