"""Staying within a budget, step by step: how many steps it pays for, and a schedule by what is spent.

A budget of responses is a number of steps, known beforehand. With a budget of sampled tokens it is not
known how long responses will be, so the learning rate follows the share of the budget that is spent, and
training ends after the step that spends it. What a step sampled is read from the run's stored rollouts,
so a resumed run gets the same rates and the same end.
"""

import math
from collections.abc import Callable
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sdzero.errors import UserError
from sdzero.method.step_rollouts import rollout_file
from sdzero.run_dir import RunDir

Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup"]


def steps_within(responses: int, questions: int, batch_size: int) -> int:
    """How many steps a budget of responses pays for, one response a question, epoch after epoch.

    The last step of an epoch is smaller if `questions` is no multiple of `batch_size`. What is left after
    the last step is less than the next one would take, and stays unspent. Raises UserError if the budget
    does not pay for one step.
    """
    epochs, rest = divmod(responses, questions)
    steps = epochs * math.ceil(questions / batch_size) + rest // batch_size
    if not steps:
        raise UserError(
            f"a budget of {responses} responses is less than one step of {min(batch_size, questions)}",
            "budget.responses",
            "raise it, or lower the method's batch_size",
        )
    return steps


class TokenSpending:
    """How much of a budget of `amount` sampled tokens the steps of a stage have spent."""

    def __init__(self, run: RunDir, stage: str, amount: int) -> None:
        self._run, self._stage = run, stage
        self.amount = amount
        self._through = [0]

    def through(self, steps: int) -> int:
        """Tokens sampled in the first `steps` steps, from their stored rollouts."""
        while len(self._through) <= steps:
            rows = self._run.read_jsonl(rollout_file(self._stage, len(self._through) - 1))
            self._through.append(self._through[-1] + sum(row["sampled_tokens"] for row in rows))
        return self._through[steps]

    def is_spent(self, steps: int) -> bool:
        """Whether nothing is left after so many steps."""
        return self.through(steps) >= self.amount

    def expected_steps(self, steps: int) -> int:
        """How many steps there will be, if they go on to sample as much as the first `steps` did."""
        return max(steps, math.ceil(steps * self.amount / max(self.through(steps), 1)))


def rate_factor(
    steps: int,
    through: Callable[[int], int],
    amount: int,
    schedule: Schedule,
    warmup_steps: int = 0,
    warmup_share: float = 0.0,
) -> float:
    """The factor on the learning rate of the step that follows `steps` finished ones, in [0, 1].

    Warm-up rises linearly from 0, over steps or over a share of the budget. The rest is transformers'
    schedule of that name with the share of the budget that is spent in place of the share of steps.
    """
    if schedule == "constant":
        return 1.0
    spent = through(steps) / amount
    if steps < warmup_steps:
        return steps / warmup_steps
    if spent < warmup_share:
        return spent / warmup_share
    if schedule == "constant_with_warmup":
        return 1.0
    start = through(warmup_steps) / amount if warmup_steps else warmup_share
    if spent >= 1.0 or start >= 1.0:
        return 0.0
    progress = (spent - start) / (1.0 - start)
    return 1.0 - progress if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


def schedule_by_spending(
    optimizer: Optimizer,
    spending: TokenSpending,
    schedule: Schedule,
    warmup_steps: int = 0,
    warmup_share: float = 0.0,
) -> LambdaLR:
    """A learning-rate scheduler that follows what is spent (see `rate_factor`)."""
    return LambdaLR(
        optimizer,
        lambda steps: rate_factor(
            steps, spending.through, spending.amount, schedule, warmup_steps, warmup_share
        ),
    )
