"""Rollouts one step ahead: what is stale and what is not, and what is refused."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from ahead_bench import before_each_update, rows_of
from distill_bench import QUESTIONS, Bench, dense_log_probabilities, make_recipe, perturbed, stored_pairs
from sdzero.errors import UserError
from sdzero.method.ahead import check_ahead
from sdzero.method.graded import Graded
from sdzero.method.question_sampling import SolveRates
from sdzero.rollout.engine import Request, Response, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.verify.verdict import Outcome, Verdict


@pytest.mark.parametrize("micro_batch_size", [8, 2])
def test_the_responses_are_of_the_weights_before_and_the_divergence_of_those_after(
    tmp_path: Path, micro_batch_size: int
) -> None:
    folder = tmp_path / "run"
    settings = {"rollouts_ahead": 1, "micro_batch_size": micro_batch_size, "learning_rate": 2e-3}
    probe = Bench(tmp_path / "probe", QUESTIONS[:8], dtype=torch.float64)
    other = perturbed(probe.model)
    probe.run.close()
    bench = Bench(folder, QUESTIONS[:24], teacher=other, dtype=torch.float64, **settings)
    students: list[PreTrainedModel] = []
    gradients: list[dict[str, torch.Tensor]] = []

    def keep(step: int) -> None:
        gradients.append({n: p.grad.clone() for n, p in bench.model.named_parameters()})
        students.append(copy.deepcopy(bench.model))

    before_each_update(bench, keep)
    logged = bench.train()
    roles = bench.sampler.roles
    for step in range(3):
        sampled_by, updated = students[max(step - 1, 0)], students[step]
        engine = TransformersEngine(sampled_by, [roles.end_token_id], bench.tokenizer.pad_token_id)
        by_id = {question.id: question for question in QUESTIONS}
        rows = rows_of(folder, step)
        requests = [
            Request(tuple(roles.generator_prompt(by_id[row["question"]])), row["seed"]) for row in rows
        ]
        responses = engine.generate(requests, Sampling(0.7, 64))
        assert [list(response.token_ids) for response in responses] == [row["token_ids"] for row in rows]

        def loss_of(student: PreTrainedModel, step: int = step) -> torch.Tensor:
            pairs, total = stored_pairs(bench, step), torch.zeros((), dtype=torch.float64)
            for pair, _ in pairs:
                s_TV = dense_log_probabilities(student, pair.student_ids, pair.student_logit_positions)
                with torch.no_grad():
                    t_TV = dense_log_probabilities(
                        bench.teacher.model, pair.teacher_ids, pair.teacher_logit_positions
                    )
                total = total + (s_TV.exp() * (s_TV - t_TV)).sum()
            return total / sum(len(pair.targets) for pair, _ in pairs)

        loss = loss_of(updated)
        assert logged[step]["loss"] == pytest.approx(loss.item(), rel=1e-6)
        if step:  # and it can be told from a divergence under the weights that sampled
            assert abs(loss_of(sampled_by).item() - loss.item()) > 1e-3 * loss.item()
        updated.zero_grad()
        loss.backward()
        for name, parameter in updated.named_parameters():
            torch.testing.assert_close(gradients[step][name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_the_first_step_is_on_policy_and_all_others_are_one_update_behind(tmp_path: Path) -> None:
    """Over two epochs of three steps, the last of each with fewer questions; and without the option."""
    ahead = Bench(tmp_path / "ahead", QUESTIONS[:20], rollouts_ahead=1, epochs=2, micro_batch_size=2)
    assert [row["staleness"] for row in ahead.train()] == [0, 1, 1, 1, 1, 1]
    plain = Bench(tmp_path / "plain", QUESTIONS[:20], epochs=2, micro_batch_size=2)
    assert [row["staleness"] for row in plain.train()] == [0] * 6
    for step in range(6):
        stale, fresh = (rows_of(tmp_path / name, step) for name in ("ahead", "plain"))
        assert {row["weight_version"] for row in stale} == {max(step - 1, 0)}
        assert {row["weight_version"] for row in fresh} == {step}
        # The same questions in the same order with the same seeds.
        assert [(row["question"], row["seed"]) for row in stale] == [
            (row["question"], row["seed"]) for row in fresh
        ]
    for bench in (ahead, plain):
        assert bench.ledger.by_stage()["distill"]["responses"] == 40


class StaleEngine(TransformersEngine):
    """Says of its responses that they are of weights before the current ones."""

    behind = 1

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        for group in super().stream(requests, sampling):
            yield [(i, replace(r, weight_version=r.weight_version - self.behind)) for i, r in group]


@pytest.mark.parametrize(("ahead", "behind"), [(0, 1), (1, 2), (0, -1)])
def test_a_rollout_that_is_staler_than_allowed_is_an_error(tmp_path: Path, ahead: int, behind: int) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:16], rollouts_ahead=ahead)
    bench.sampler.engine.__class__ = StaleEngine
    bench.sampler.engine.behind = behind
    with pytest.raises(UserError, match="updates old"):
        bench.train()
    bench.run.close()


def test_one_update_more_between_two_steps_is_found_out(tmp_path: Path) -> None:
    """With the stamps that the engine itself gives."""
    bench = Bench(tmp_path / "run", QUESTIONS[:24], rollouts_ahead=1)
    take = bench.sampler.take_weights
    bench.sampler.take_weights = lambda model, steps=1: take(model, 2 * steps)  # type: ignore[method-assign]
    with pytest.raises(UserError, match="2 to 2 updates old"):
        bench.train()
    bench.run.close()


def test_what_does_not_go_with_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="policy_gradient_weight"):
        make_recipe(rollouts_ahead=1, policy_gradient_weight=1.0)
    with pytest.raises(ValidationError):
        make_recipe(rollouts_ahead=2)
    bench = Bench(tmp_path / "run", QUESTIONS[:8], rollouts_ahead=1)
    bench.run.close()
    bench.trainer.args.policy_gradient_weight = 1.0
    with pytest.raises(UserError, match="one update old"):
        check_ahead(bench.trainer.args)


def test_questions_by_solve_rate_are_chosen_with_all_that_was_graded_before(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    bench = Bench(folder, QUESTIONS, rollouts_ahead=1, question_sampling="solve_rate")
    bench.train()
    rates, by_id = SolveRates(QUESTIONS), {question.id: question for question in QUESTIONS}
    chosen = []
    for step in range(6):
        rows = rows_of(folder, step)
        chosen.append([row["question"] for row in rows])
        assert chosen[-1] == [question.id for question in rates.choose(8, bench.trainer.args.seed, step)]
        rates.note(
            Graded(by_id[row["question"]], 0, (), (), Verdict(Outcome(row["outcome"])), 0) for row in rows
        )
    assert len({name for step in chosen for name in step}) < 48  # by the rates, not by the epoch
