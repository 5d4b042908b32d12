"""What GRPO samples: which questions a step asks, their graded responses, and what is left of the budget."""

import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import Sampler
from transformers import PreTrainedModel, TrainerState
from trl import GRPOTrainer  # type: ignore[attr-defined]

from sdzero import ranks
from sdzero.baselines.spending import TokenSpending
from sdzero.errors import UserError
from sdzero.method.graded import Draw, Graded, GradedSampler
from sdzero.method.step_rollouts import rollout_file
from sdzero.questions.question import Question
from sdzero.recipe_baselines import GrpoSettings
from sdzero.rollout.engine import Sampling, seed_of
from sdzero.run_context import Budget
from sdzero.verify.verdict import Outcome, Verdict

SEEDED_AS = "grpo"
"""The rollouts' seeds depend on this word, not on the stage's name: runs under two names are alike."""


def most_steps(budget: Budget, batch_size: int) -> int:
    """How many optimizer steps the budget allows at most: of tokens, each response has at least one.

    Raises UserError if it is none.
    """
    by_tokens = budget.match == "tokens"
    steps = math.ceil(budget.amount / batch_size) if by_tokens else budget.amount // batch_size
    if not steps:
        raise UserError(
            f"the budget of {budget} is smaller than one batch of GRPO ({batch_size} responses)",
            f"budget.{budget.match}",
            "raise it, or lower grpo.batch_size",
        )
    return steps


class Rollouts:
    """TRL's `rollout_func`: samples and grades a step's responses, and keeps account of them.

    Those of a step that a killed process left in the run folder are read, not sampled again. `spending`
    is what a budget of tokens is counted with.

    TRL gives each process the rows of the batch that it trains on. What is sampled, counted and kept is the
    whole batch, the same in all of them; each takes its rows out of it.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        prompts: Sequence[tuple[int, ...]],
        sampler: GradedSampler,
        model: PreTrainedModel,
        settings: GrpoSettings,
        seed: int,
        stage: str,
        spending: TokenSpending | None = None,
    ) -> None:
        self.questions = questions
        self.sampler = sampler
        self.model = model
        self.settings = settings
        self.seed = seed
        self.stage = stage
        self.spending = spending
        self._prompts = prompts
        self.verifier_errors = 0
        self.metrics: dict[str, Any] = {}
        self._trained_tokens = 0
        self._watch = sampler.ledger.start()
        sampler.take_weights(model, steps=0)

    def restore(self, done: int) -> None:
        """Take up the account of the `done` steps before a checkpoint from what they left."""
        for step in range(done):
            rows = self.sampler.run.read_jsonl(rollout_file(self.stage, step))
            self.verifier_errors += sum(row["outcome"] == Outcome.ERROR for row in rows)
        self.sampler.take_weights(self.model, done)

    def is_spent(self, steps: int) -> bool:
        """Whether a budget of tokens was spent by the first `steps` steps."""
        return self.spending is not None and self.spending.is_spent(steps)

    def __call__(self, prompts: list[str], trainer: GRPOTrainer) -> dict[str, Any]:
        """Sample and grade, in all processes at once. Each prompt is the number of a question, and stands
        there once a response."""
        step, started = trainer.state.global_step, time.monotonic()
        shares = ranks.gather(prompts)
        asked: Counter[int] = Counter()
        draws = []
        for number in (int(prompt) for share in shares for prompt in share):
            question, index = self.questions[number], asked[number]
            asked[number] += 1
            seed = seed_of(self.seed, SEEDED_AS, step, question.id, index)
            draws.append(Draw(question, self._prompts[number], seed, index))
        own = self.settings
        sampling = Sampling(own.temperature, own.max_new_tokens, own.top_p)
        graded = self.sampler.batch(draws, sampling, rollout_file(self.stage, step), self.stage)
        self.sampler.rest()
        self.verifier_errors += sum(not one.verdict.counts for one in graded)
        self._begin_update(graded, time.monotonic() - started)
        before = sum(map(len, shares[: ranks.rank()]))
        own_rows = graded[before : before + len(prompts)]
        found: dict[str, Any] = {
            "prompt_ids": [list(one.prompt_ids) for one in own_rows],
            "completion_ids": [list(one.token_ids) for one in own_rows],
            "logprobs": None,
            "verdict": [one.verdict for one in own_rows],
        }
        if not all(one.verdict.counts for one in graded):
            found["env_mask"] = [[int(one.verdict.counts)] * len(one.token_ids) for one in own_rows]
        return found

    def finish_step(self, state: TrainerState) -> None:
        """After the optimizer's step: count it, and tell the engine. `global_step` counts it already."""
        self.sampler.take_weights(self.model)
        spent = self._watch.read()
        self.sampler.ledger.record(
            self.stage,
            f"update-{state.global_step:06d}",
            trained_tokens=self._trained_tokens,
            seconds=spent.seconds,
            joules=spent.joules,
        )
        questions = self.settings.batch_size // self.settings.responses_per_question
        self.metrics |= {
            "passes": state.global_step * questions / len(self.questions),
            "update_seconds": spent.seconds,
        }
        if self.spending is not None:  # the trainer's max_steps is only the most there could be
            self.metrics["max_steps"] = self.spending.expected_steps(state.global_step)

    def _begin_update(self, graded: Sequence[Graded], seconds: float) -> None:
        self._trained_tokens = sum(len(one.token_ids) for one in graded if one.verdict.counts)
        self.metrics = {
            "tokens": sum(one.sampled_tokens for one in graded) / len(graded),
            "truncated": sum(one.truncated for one in graded),
            "verifier_errors": self.verifier_errors,
            "rollout_seconds": seconds,
        }
        self._watch = self.sampler.ledger.start()


def verdict_reward(verdict: Sequence[Verdict], **_: Any) -> list[float | None]:
    """TRL's reward function: the binary rewards of verdicts that the rollouts brought along.

    None, which TRL leaves out, where the verifier failed.
    """
    return [float(one.reward) if one.counts else None for one in verdict]


class QuestionRows(Sampler[int]):
    """The rows that TRL's data loader reads: each question G times in a row, questions reshuffled a pass.

    TRL reads a whole generation batch for each micro-batch and uses the first, so each batch stands
    `repeats` times. The order is a function of the seed alone and runs through all steps as one epoch;
    TRL's own sampler has another order after resuming in a later epoch, and leaves out each epoch's rest.
    """

    def __init__(
        self, questions: int, steps: int, per_step: int, responses: int, repeats: int, seed: int
    ) -> None:
        self._questions, self._steps, self._seed = questions, steps, seed
        self._per_step, self._responses, self._repeats = per_step, responses, repeats

    def __len__(self) -> int:
        return self._steps * self._per_step * self._responses * self._repeats

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        for _ in range(self._steps):
            batch = [number for _, number in zip(range(self._per_step), order, strict=False)]
            for _ in range(self._repeats):
                for number in batch:
                    yield from [number] * self._responses

    def _order(self) -> Iterator[int]:
        pass_ = 0
        while True:
            numbers = list(range(self._questions))
            random.Random(seed_of(self._seed, SEEDED_AS, "order", pass_)).shuffle(numbers)
            yield from numbers
            pass_ += 1
