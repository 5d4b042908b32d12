"""The responses of each step of phase 2: sampled when the step begins, or while the step before is updated.

With `rollouts_ahead` 0 the student that is updated has sampled them. With 1 they come from the weights
before the last update: those of step n + 1 are begun when step n is, and are graded, or with an engine that
samples elsewhere also sampled, while step n is updated. Only the sampled tokens are stale; every
distribution is that of the current student and teacher. Each response bears the version of the weights that
sampled it, so its staleness is known, and more than is allowed is an error.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sdzero.errors import CollapseError, UserError
from sdzero.method.ahead import BatchAhead, QuestionOrder, check_ahead
from sdzero.method.distill_config import SelfDistillationConfig
from sdzero.method.graded import Draw, Graded, GradedSampler
from sdzero.method.question_sampling import SolveRates
from sdzero.questions.question import Question
from sdzero.rollout.engine import Sampling, seed_of


def rollout_file(stage: str, step: int) -> str:
    """Where in the run folder the responses of a step are kept; also their key in the ledger."""
    return f"{stage}/rollouts/step-{step:06d}.jsonl"


@dataclass(frozen=True)
class StepRollout:
    """A step's graded responses. `seconds`: how long the step waited for them, and sampled those of the next.

    `staleness` is the number of updates between the weights that sampled and those that are updated.
    """

    graded: list[Graded]
    staleness: int
    seconds: float


class StepRollouts:
    """Samples, or reads, the responses of each step; as a context manager, ends what is under way at a fault.

    Args:
        sampler: samples with the student's weights and grades.
        questions: what the numbers of the data loader stand for.
        args: the trainer's settings.
        stage: the folder and the ledger's stage of the rollouts.
        seeded_as: part of every seed (see `Objective`).
    """

    def __init__(
        self,
        sampler: GradedSampler,
        questions: Sequence[Question],
        args: SelfDistillationConfig,
        stage: str,
        seeded_as: str,
    ) -> None:
        self.solve_rates = SolveRates(questions) if args.question_sampling == "solve_rate" else None
        self._sampler = sampler
        self._questions = questions
        self._args = args
        self._stage = stage
        self._seeded_as = seeded_as
        self._order = QuestionOrder(len(questions), args)
        self._next: BatchAhead | None = None
        if args.rollouts_ahead:
            check_ahead(args)

    def of_step(self, step: int, numbers: Sequence[int], max_steps: int) -> StepRollout:
        """The responses of `step` (from 0) to the questions that the data loader gives it; and, if the run
        is one ahead, the beginning of those of the next, unless `max_steps` ends it.

        Raises UserError for responses of other weights than allowed, or that should be there and are not.
        """
        started = time.monotonic()
        graded = self._take(step, self._draws(step, numbers))
        staleness = self._staleness(graded, step)
        if self.solve_rates is not None:
            self.solve_rates.note(graded)
        if self._args.rollouts_ahead and step + 1 < max_steps:
            draws = self._draws(step + 1, self._order.of_step(step + 1))
            file = rollout_file(self._stage, step + 1)
            self._next = BatchAhead(self._sampler, draws, self._sampling, file, self._stage)
        else:
            self._sampler.rest()
        return StepRollout(graded, staleness, time.monotonic() - started)

    def wait_until_sampled(self) -> None:
        """Wait until nothing is being sampled; whoever changes the engine's weights waits first."""
        if self._next is not None:
            self._next.wait_until_sampled()

    def finish(self) -> None:
        """Wait until what was begun is sampled, graded, counted and in its file."""
        if self._next is not None:
            self._next.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """After an early end or a collapse, keep and count what was sampled for a further step; after another
        fault, drop it."""
        under_way, self._next = self._next, None
        if under_way is not None and (fault is None or isinstance(fault, CollapseError)):
            under_way.finish()
        elif under_way is not None:
            under_way.abandon()

    @property
    def steps_per_epoch(self) -> int:
        """How many steps one epoch has."""
        return self._order.steps_per_epoch

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self._args.temperature, self._args.max_new_tokens, self._args.top_p)

    def _draws(self, step: int, numbers: Sequence[int]) -> list[Draw]:
        questions = [self._questions[number] for number in numbers]
        if self.solve_rates is not None:  # the epoch says how many, the rates which
            questions = self.solve_rates.choose(len(questions), self._args.seed, step)
        return [
            Draw(
                question,
                tuple(self._sampler.roles.generator_prompt(question)),
                seed_of(self._args.seed, self._seeded_as, step, question.id),
            )
            for question in questions
        ]

    def _take(self, step: int, draws: Sequence[Draw]) -> list[Graded]:
        file = rollout_file(self._stage, step)
        under_way, self._next = self._next, None
        if under_way is not None:
            if under_way.draws != draws:
                raise RuntimeError(f"the responses sampled ahead for step {step} are not to its questions")
            return under_way.finish()
        if not self._args.rollouts_ahead or step == 0:
            return self._sampler.batch(draws, self._sampling, file, self._stage)
        stored = self._sampler.stored(draws, file)  # the run was resumed here
        if stored is None:
            raise UserError(
                "the responses of this step are missing, and the weights that sample them are gone",
                str(self._sampler.run.path(file)),
                "restore the file, or start in a new folder",
            )
        return stored

    def _staleness(self, graded: Sequence[Graded], step: int) -> int:
        version = self._sampler.engine.weight_version
        behind = {version - one.weight_version for one in graded}
        allowed = self._args.rollouts_ahead
        if behind and not 0 <= min(behind) <= max(behind) <= allowed:
            raise UserError(
                f"responses were sampled with weights {min(behind)} to {max(behind)} updates old, and"
                f" distill.rollouts_ahead={allowed} allows {allowed}",
                str(self._sampler.run.path(rollout_file(self._stage, step))),
                "give the engine the weights after each update; start in a new folder",
            )
        return max(behind, default=0)
