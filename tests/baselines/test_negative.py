import math
from pathlib import Path
from typing import Any

import pytest
import torch

from baselines.small_run import ON_POLICY, QUESTIONS, Killed, killed, rollouts, small_run
from sdzero.baselines.negative import train_negative
from sdzero.errors import UserError
from sdzero.method import objectives
from sdzero.method.micro_batches import make_micro_batch
from sdzero.method.objectives import ConstantAdvantage, target_log_probabilities
from sdzero.method.roles import AlignmentError, StudentTargets
from sdzero.run_context import Budget, RunContext
from sdzero.verify.verdict import Outcome, Verdict
from support import in_turn


def train(folder: Path, amount: int, count: int = 8, grade: Any = None, **section: Any) -> Any:
    questions, grade = QUESTIONS[:count], grade or in_turn(Outcome.CORRECT, Outcome.WRONG)
    with small_run(folder, questions[:4], questions[4:], grade, negative=ON_POLICY | section) as context:
        train_negative(context, "negative", context.recipe.negative, Budget("responses", amount))
        return {
            "model": context.load(context.run.path("negative/model")),
            "base": context.load("tiny"),
            "prompts": {q.id: context.roles.generator_prompt(q) for q in questions},
            "steps": rollouts(context, "negative"),
            "counts": context.ledger.by_stage()["negative"],
            "log": context.run.read_jsonl("negative/log.jsonl"),
            "info": context.run.stage_info("negative"),
        }


# ---- the loss ----


@pytest.mark.parametrize("many", [False, True])
def test_log_probability_entropy_and_gradient_worked_by_hand(monkeypatch, many: bool) -> None:
    """Probabilities 1/4, 1/2, 1/4: the entropy is 1.5 bits, the gradient of log p is (target - p)."""
    if many:
        monkeypatch.setattr(objectives, "LOGITS_AT_A_TIME", 3)  # one token at a time
    head = torch.nn.Linear(2, 3, bias=False, dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0, 5.0], [math.log(2), 5.0], [0.0, 5.0]]))
    hidden_TD = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64, requires_grad=True)
    log_probability_T, entropy_T = target_log_probabilities(hidden_TD, head, torch.tensor([1, 0, 2]))
    assert log_probability_T.tolist() == pytest.approx([math.log(1 / 2), math.log(1 / 4), math.log(1 / 3)])
    assert entropy_T.tolist() == pytest.approx([1.5 * math.log(2)] * 2 + [math.log(3)])
    # Advantage -1 on the first token only, three tokens in the batch: the loss is log p / 3.
    (log_probability_T[0] / 3).backward()
    expected = torch.tensor([[-1 / 12, 0.0], [1 / 6, 0.0], [-1 / 12, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(head.weight.grad, expected)
    assert not entropy_T.requires_grad


def test_the_loss_is_the_advantage_times_log_pi_over_wrong_tokens(tmp_path: Path) -> None:
    """Right responses carry no loss; sequence weights are applied."""
    with small_run(tmp_path / "run", [], [], model={"path": "tiny", "dtype": "float64"}) as context:
        model = context.load("tiny")
    wrong = StudentTargets((3, 4, 40, 41), (40, 41), (1, 2))
    right = StudentTargets((3, 4, 5, 42), (42,), (2,))
    inputs = make_micro_batch([(wrong, 0), (right, 1)], [], 0)
    weights_T = torch.tensor([0.5, 0.5, 1.0])
    losses = ConstantAdvantage(-2.0).token_losses(model, None, inputs, weights_T)
    with torch.no_grad():
        log = [model(torch.tensor([c.student_ids])).logits[0].log_softmax(-1) for c in (wrong, right)]
    expected = [log[0][1, 40], log[0][2, 41], log[1][2, 42]]
    torch.testing.assert_close(losses.measure_T, torch.stack(expected))
    assert losses.total.item() == pytest.approx(2.0 * 0.5 * float(expected[0] + expected[1]))
    alone = make_micro_batch([(right, 1)], [], 0)
    silent = ConstantAdvantage(-2.0).token_losses(model, None, alone, None).total
    silent.backward()
    assert silent.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_targets_that_are_not_the_end_of_the_sequence_are_refused() -> None:
    with pytest.raises(AlignmentError, match="does not end with the targets"):
        StudentTargets((3, 4, 40), (41,), (1,))


# ---- training ----


def mean_log_probability(model: Any, done: Any, rows: list[Any]) -> float:
    total, tokens = 0.0, 0
    for row in rows:
        y = row["token_ids"]
        with torch.no_grad():
            log = model(torch.tensor([done["prompts"][row["question"]] + y])).logits[0].log_softmax(-1)
        total += float(log[-len(y) - 1 : -1].gather(-1, torch.tensor(y)[:, None]).sum())
        tokens += len(y)
    return total / tokens


def test_wrong_responses_become_less_likely(tmp_path: Path) -> None:
    done = train(tmp_path / "run", 4, learning_rate=1e-3, schedule="constant")
    [rows] = done["steps"]
    wrong = [row for row in rows if row["outcome"] == "wrong"]
    assert {row["outcome"] for row in rows} == {"wrong", "correct"}
    before = mean_log_probability(done["base"], done, wrong)
    assert mean_log_probability(done["model"], done, wrong) < 2 * before
    [logged] = done["log"]
    assert logged["log_probability_r0"] == pytest.approx(before, rel=1e-4)
    right = [row for row in rows if row["outcome"] == "correct"]
    assert logged["log_probability_r1"] == pytest.approx(
        mean_log_probability(done["base"], done, right), rel=1e-4
    )
    # The normaliser counts the tokens of right responses too.
    lengths = [sum(len(row["token_ids"]) for row in part) for part in (wrong, right)]
    assert logged["loss"] == pytest.approx(before * lengths[0] / sum(lengths), rel=1e-4)
    assert done["counts"]["teacher_tokens"] == 0
    assert done["counts"]["trained_tokens"] == sum(lengths)


def test_with_right_responses_only_nothing_is_learned(tmp_path: Path) -> None:
    done = train(
        tmp_path / "run", 8, grade=lambda items: [Verdict(Outcome.CORRECT)] * len(items), max_new_tokens=96
    )
    assert {row["outcome"] for rows in done["steps"] for row in rows} == {"correct"}
    base = dict(done["base"].named_parameters())
    assert all(torch.equal(base[name], p) for name, p in done["model"].named_parameters())


def test_responses_that_the_verifier_failed_on_are_left_out(tmp_path: Path) -> None:
    done = train(
        tmp_path / "run", 4, grade=lambda items: [Verdict(Outcome.ERROR)] * len(items), max_new_tokens=96
    )
    assert done["info"] == {"steps": 1, "overlong": 0, "verifier_errors": 4}
    base = dict(done["base"].named_parameters())
    assert all(torch.equal(base[name], p) for name, p in done["model"].named_parameters())


@pytest.mark.parametrize("normalize", ["tokens", "sequences"])
def test_the_step_does_not_depend_on_the_micro_batch(tmp_path: Path, normalize: str) -> None:
    ends = [
        train(tmp_path / f"run-{size}", 4, normalize=normalize, micro_batch_size=size, learning_rate=1e-4)
        for size in (4, 1)
    ]
    assert ends[0]["log"][0]["loss"] == pytest.approx(ends[1]["log"][0]["loss"], rel=1e-4)
    assert ends[0]["log"][0]["grad_norm"] == pytest.approx(ends[1]["log"][0]["grad_norm"], rel=1e-3)


def test_a_budget_that_is_too_small_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="less than one step"):
        train(tmp_path / "run", 3)


def test_a_killed_training_ends_in_the_same_weights(tmp_path: Path, monkeypatch) -> None:
    whole = train(tmp_path / "whole", 16, 6)
    compute, calls = ConstantAdvantage.token_losses, []

    def dying(self: Any, *args: Any) -> Any:
        calls.append(1)
        return killed() if len(calls) == 4 else compute(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ConstantAdvantage, "token_losses", dying)
        with pytest.raises(Killed):
            train(tmp_path / "cut", 16, 6)
    with monkeypatch.context() as patch:
        patch.setattr(RunContext, "keep", killed)
        with pytest.raises(Killed):
            train(tmp_path / "cut", 16, 6)
    again = train(tmp_path / "cut", 16, 6)
    assert len(whole["steps"]) == 5
    for one, other in zip(whole["model"].parameters(), again["model"].parameters(), strict=True):
        assert torch.equal(one, other)
    assert again["counts"]["responses"] == whole["counts"]["responses"] == 16
