"""Rollouts one step ahead: what is stale and what is not, what goes on at the same time, and exact resume."""

import copy
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from distill_bench import QUESTIONS, Bench, dense_log_probabilities, make_recipe, perturbed, stored_pairs
from sdzero.errors import UserError
from sdzero.method.ahead import check_ahead
from sdzero.method.graded import Graded
from sdzero.method.question_sampling import SolveRates
from sdzero.method.training import StopWithoutProgress
from sdzero.rollout.engine import Request, Response, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.verify.math import MathVerifier
from sdzero.verify.verdict import Outcome, Verdict

PATIENCE = 60.0
"""Seconds after which a test that waits for the other side gives up."""


def rows_of(folder: Path, step: int) -> list[dict[str, Any]]:
    file = folder / f"distill/rollouts/step-{step:06d}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def before_each_update(bench: Bench, action: Any) -> None:
    """Have `action(step)` called when the step's gradients are there and its weights are still the old."""
    clip = bench.trainer._clip_grad_norm

    def watched(model: Any) -> Any:
        action(bench.trainer.state.global_step)
        return clip(model)

    bench.trainer._clip_grad_norm = watched


def assert_same_weights(one: Any, other: Any) -> None:
    others = dict(other.named_parameters())
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, others[name]), name


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Four steps that nothing has interrupted."""
    bench = Bench(tmp_path_factory.mktemp("ahead") / "whole", QUESTIONS[:32], rollouts_ahead=1)
    bench.train()
    return bench


# ---- what is stale ----


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
    with pytest.raises(UserError, match="one process"):
        check_ahead(SimpleNamespace(policy_gradient_weight=0.0, world_size=2))  # type: ignore[arg-type]


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


# ---- what goes on at the same time ----


class Events:
    """What has happened, in order; and a way to wait for it."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self._changed = threading.Condition()

    def note(self, what: str, step: int) -> None:
        with self._changed:
            self.seen.append((what, step))
            self._changed.notify_all()

    def wait_for(self, what: str, step: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: (what, step) in self.seen, PATIENCE), (what, step)


class SlowGrader:
    """Grades the responses of a step only when the update of the step before has been computed."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.step_of: dict[str, int] = {}
        self.busy = threading.Lock()
        self.broken_at: int | None = None
        self._verifier = MathVerifier()

    def __call__(self, items: Sequence[tuple[Any, str]]) -> list[Verdict]:
        assert self.busy.acquire(blocking=False), "the verifier is called twice at one time"
        try:
            step = self.step_of[items[0][0].id]
            if step == self.broken_at:
                raise OSError("no verifier any more")
            if step:
                self.events.wait_for("updated", step - 1)
            self.events.note("graded", step)
            return [self._verifier.grade(question, text) for question, text in items]
        finally:
            self.busy.release()


def watched_bench(folder: Path, count: int, **settings: Any) -> tuple[Bench, Events]:
    """A bench whose grader is slow, and whose updates are events."""
    events = Events()
    grader = SlowGrader(events)
    bench = Bench(folder, QUESTIONS[:count], grade=grader, rollouts_ahead=1, **settings)
    order = bench.trainer.rollouts._order
    for step in range(order.steps_per_epoch):
        grader.step_of |= {QUESTIONS[number].id: step for number in order.of_step(step)}
    before_each_update(bench, lambda step: events.note("updated", step))
    return bench, events


def test_a_slow_verifier_grades_while_the_step_before_is_updated(left_alone: Bench, tmp_path: Path) -> None:
    """The verdicts of step n + 1 are given only after the update of step n: nothing waited for them."""
    bench, events = watched_bench(tmp_path / "run", 32)
    logged = bench.train()
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    first = {event: number for number, event in reversed(list(enumerate(events.seen)))}
    for step in range(3):
        assert first["updated", step] < first["graded", step + 1] < first["updated", step + 1]
    assert_same_weights(left_alone.model, bench.model)


def test_an_evaluation_waits_until_the_verifier_is_free(tmp_path: Path) -> None:
    scored = []

    def score(step: int) -> dict[str, float]:
        grader = bench.sampler.grade
        assert not grader.busy.locked()  # type: ignore[attr-defined]
        assert bench.run.path(f"distill/rollouts/step-{step:06d}.jsonl").exists() == (step < 3)
        scored.append(step)
        return {"avg": 0.5}

    bench, _ = watched_bench(
        tmp_path / "run",
        24,
        tuning_score=score,
        extra={"eval_strategy": "steps", "eval_steps": 1},
        checkpoint_every=50,
    )
    bench.train()
    assert scored == [1, 2, 3]


class ElsewhereEngine(TransformersEngine):
    """Samples with a copy of the student, as an engine on other devices would; and slowly: it begins with
    the responses of a step only when the update of the step before has been computed. It reads the student's
    weights when they are needed, which must not be while they are trained."""

    def __init__(self, student: PreTrainedModel, events: Events | None, *args: Any) -> None:
        super().__init__(copy.deepcopy(student), *args)
        self.student, self.events, self.calls, self.samples = student, events, 0, threading.Lock()
        self.threads: list[str] = []
        self.held = 0

    @property
    def samples_elsewhere(self) -> bool:
        return True

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        self.read_weights()
        with self.samples:
            step, self.calls = self.calls, self.calls + 1
            self.threads.append(threading.current_thread().name)
            if step and self.events is not None:
                self.events.wait_for("updated", step - 1)
                self.events.note("sampled", step)
            yield from super().stream(requests, sampling)

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        assert not self.samples.locked(), "other weights are announced while the old ones sample"
        assert model is self.student
        self._weight_version += steps

    def read_weights(self) -> None:
        if self.held != self.weight_version:
            assert threading.current_thread() is threading.main_thread(), "read while they are trained"
            self.model.load_state_dict(self.student.state_dict())
            self.held = self.weight_version


def elsewhere_bench(folder: Path, events: Events | None, **settings: Any) -> tuple[Bench, ElsewhereEngine]:
    bench = Bench(folder, QUESTIONS[:32], rollouts_ahead=1, **settings)
    roles, pad = bench.sampler.roles, bench.tokenizer.pad_token_id
    engine = ElsewhereEngine(bench.model, events, [roles.end_token_id], pad)
    bench.sampler.engine = engine
    if events is not None:
        before_each_update(bench, lambda step: events.note("updated", step))
    return bench, engine


def test_an_engine_elsewhere_samples_during_the_update(left_alone: Bench, tmp_path: Path) -> None:
    """It samples step n + 1 only after the update of step n is computed, with the weights before it; and the
    training ends in the very weights of one whose rollouts were sampled before the update."""
    events = Events()
    bench, engine = elsewhere_bench(tmp_path / "run", events)
    logged = bench.train()
    assert [row["staleness"] for row in logged] == [0, 1, 1, 1]
    assert engine.threads == ["MainThread"] + ["rollouts-ahead"] * 3
    order = [event for event in events.seen if event[0] in ("updated", "sampled")]
    assert order == [
        ("updated", 0),
        ("sampled", 1),
        ("updated", 1),
        ("sampled", 2),
        ("updated", 2),
        ("sampled", 3),
        ("updated", 3),
    ]
    for step in range(4):
        assert rows_of(tmp_path / "run", step) == rows_of(left_alone.run.root, step)
    assert_same_weights(left_alone.model, bench.model)
    assert bench.ledger.by_stage()["distill"]["responses"] == 32


def test_an_engine_that_fails_in_the_background_ends_the_training(tmp_path: Path) -> None:
    bench, engine = elsewhere_bench(tmp_path / "run", None)

    def broken(requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        raise ConnectionError("the server is gone")
        yield

    def break_it(step: int) -> None:
        engine.stream = broken  # type: ignore[method-assign]

    before_each_update(bench, break_it)
    with pytest.raises(ConnectionError, match="gone"):
        bench.train()
    bench.run.close()
    assert not rows_exist(tmp_path / "run", 2)
    assert_nothing_goes_on()


def test_a_verifier_that_fails_in_the_background_ends_the_training(tmp_path: Path) -> None:
    bench, events = watched_bench(tmp_path / "run", 32)
    bench.sampler.grade.broken_at = 2  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="no verifier"):
        bench.train()
    bench.run.close()
    assert ("updated", 1) in events.seen
    assert not rows_exist(tmp_path / "run", 2)
    assert_nothing_goes_on()


def rows_exist(folder: Path, step: int) -> bool:
    return (folder / f"distill/rollouts/step-{step:06d}.jsonl").exists()


def assert_nothing_goes_on() -> None:
    assert {thread.name for thread in threading.enumerate()}.isdisjoint({"grading", "rollouts-ahead"})


# ---- resuming ----


class Killed(BaseException):
    """Stands for the end of the process."""


def die_in_an_update(bench: Bench, step: int) -> None:
    def die(current: int) -> None:
        if current == step:
            raise Killed

    before_each_update(bench, die)


def die_before_a_file(bench: Bench, step: int) -> None:
    """After the responses ahead were counted, and before they are kept."""
    write = bench.run.write_jsonl

    def dying(name: str, rows: Any) -> None:
        if name.endswith(f"step-{step:06d}.jsonl"):
            raise Killed
        write(name, rows)

    bench.run.write_jsonl = dying  # type: ignore[method-assign]


def die_in_a_checkpoint(bench: Bench, step: int) -> None:
    """After the responses ahead are kept, and before the checkpoint is whole."""
    save = bench.trainer.teacher.save

    def dying(folder: Path) -> None:
        assert rows_exist(bench.run.root, step)  # finished before anything of the checkpoint counts
        if folder.name == f"checkpoint-{step}":
            raise Killed
        save(folder)

    bench.trainer.teacher.save = dying


RESUMED = {
    "plain": {},
    "synced and rehearsed": {
        "sync": "steps",
        "sync_every": 2,
        "rehearsal": True,
        "rehearsal_weight": 0.3,
        "rehearsal_batch_size": 4,
    },
    "solve rate": {"question_sampling": "solve_rate"},
    "two epochs": {"epochs": 2},
}


@pytest.mark.parametrize("name", RESUMED)
def test_four_steps_are_two_and_two_steps(tmp_path: Path, name: str) -> None:
    settings: dict[str, Any] = {"rollouts_ahead": 1, **RESUMED[name]}
    questions = QUESTIONS[:16] if name == "two epochs" else QUESTIONS[:32]
    whole = Bench(tmp_path / "whole", questions, **settings)
    whole.train()
    cut = Bench(tmp_path / "cut", questions, **settings)
    die_in_an_update(cut, 3)
    with pytest.raises(Killed):
        cut.train()
    cut.run.close()
    again = Bench(tmp_path / "cut", questions, **settings)
    logged = again.train()
    assert [(row["step"], row["staleness"]) for row in logged] == [(3, 1), (4, 1)]
    assert_same_ends(whole, again, 4)


@pytest.mark.parametrize(
    ("die", "step", "first_again"),
    [
        (die_in_an_update, 0, 1),
        (die_in_an_update, 1, 1),
        (die_in_an_update, 2, 3),
        (die_before_a_file, 1, 1),
        (die_before_a_file, 2, 1),
        (die_before_a_file, 3, 3),
        (die_in_a_checkpoint, 2, 1),
    ],
)
def test_wherever_it_is_killed_it_ends_the_same(
    left_alone: Bench, tmp_path: Path, die: Any, step: int, first_again: int
) -> None:
    """Checkpoints are made after steps 2 and 4."""
    cut = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    die(cut, step)
    with pytest.raises(Killed):
        cut.train()
    cut.run.close()
    again = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    assert [row["step"] for row in again.train()] == list(range(first_again, 5))
    assert_same_ends(left_alone, again, 4)


def assert_same_ends(whole: Bench, again: Bench, steps: int) -> None:
    """Weights, teacher, responses, and what the ledger has counted are the same, and nothing is beyond."""
    assert_same_weights(whole.model, again.model)
    assert again.teacher.fingerprint == whole.teacher.fingerprint
    for step in range(steps):
        assert rows_of(whole.run.root, step) == rows_of(again.run.root, step)
    for bench in (whole, again):
        assert not rows_exist(bench.run.root, steps)
        counted = bench.ledger.by_stage()["distill"]
        rows = [row for step in range(steps) for row in rows_of(bench.run.root, step)]
        assert counted["responses"] == len(rows) == 8 * steps
        assert counted["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert_nothing_goes_on()


def test_without_the_responses_of_the_old_weights_it_does_not_go_on(tmp_path: Path) -> None:
    cut = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    die_in_an_update(cut, 2)
    with pytest.raises(Killed):
        cut.train()
    cut.run.close()
    (tmp_path / "cut/distill/rollouts/step-000002.jsonl").unlink()
    again = Bench(tmp_path / "cut", QUESTIONS[:32], rollouts_ahead=1)
    with pytest.raises(UserError, match="the weights that sample them are gone"):
        again.train()
    again.run.close()


def test_after_an_early_stop_the_step_that_was_begun_is_counted_once(tmp_path: Path) -> None:
    scores = {1: 0.9, 2: 0.5, 3: 0.4}
    bench = Bench(
        tmp_path / "run",
        QUESTIONS,
        tuning_score=lambda step: {"avg": scores[step]},
        extra={
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_steps": 1,
            "metric_for_best_model": "avg",
            "greater_is_better": True,
            "load_best_model_at_end": True,
        },
        rollouts_ahead=1,
        checkpoint_every=1,
    )
    bench.trainer.add_callback(StopWithoutProgress(2))
    logged = [row for row in bench.train() if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3]
    # The end is known only after the evaluation: a fourth step's responses were sampled, and are counted.
    rows = [row for step in range(4) for row in rows_of(tmp_path / "run", step)]
    counted = bench.ledger.by_stage()["distill"]
    assert counted["responses"] == len(rows) == 32
    assert counted["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert not rows_exist(tmp_path / "run", 4)
