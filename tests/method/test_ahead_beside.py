"""Rollouts one step ahead: what goes on while a step is updated, and what must wait."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from ahead_bench import (
    EngineElsewhere,
    assert_nothing_goes_on,
    assert_same_weights,
    before_each_update,
    left_alone_in,
    rows_exist,
    rows_of,
)
from distill_bench import QUESTIONS, Bench
from sdzero.rollout.engine import Request, Response, Sampling
from sdzero.verify.math import MathVerifier
from sdzero.verify.verdict import Verdict

PATIENCE = 60.0
"""Seconds after which a test that waits for the other side gives up."""


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return left_alone_in(tmp_path_factory.mktemp("ahead") / "whole")


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


class SlowEngineElsewhere(EngineElsewhere):
    """Begins with the responses of a step only when the update of the step before has been computed."""

    def __init__(self, bench: Bench, events: Events | None) -> None:
        super().__init__(bench)
        self.events, self.calls, self.samples = events, 0, threading.Lock()

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        with self.samples:
            step, self.calls = self.calls, self.calls + 1
            if step and self.events is not None:
                self.events.wait_for("updated", step - 1)
                self.events.note("sampled", step)
            yield from super().stream(requests, sampling)

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        assert not self.samples.locked(), "other weights are announced while the old ones sample"
        assert model is self.student
        super().take_weights(model, steps)


def elsewhere_bench(folder: Path, events: Events | None) -> tuple[Bench, SlowEngineElsewhere]:
    bench = Bench(folder, QUESTIONS[:32], rollouts_ahead=1)
    bench.sampler.engine = engine = SlowEngineElsewhere(bench, events)
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
