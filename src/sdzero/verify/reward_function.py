"""Reward functions with the signature of TRL's trainers as verifiers: `reward(completions, **columns)`.

TRL (docs: reward functions of GRPOTrainer) calls them with keyword arguments, `prompts`, `completions` and
the columns of the data, each a list with one value a completion, and takes a list of numbers. Here the list
has one completion. SD-Zero's reward is binary, so a value must be 0 or 1, unless a threshold makes it so.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any, Literal

from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Canary

Completions = Literal["text", "messages"]


def is_reward_function(function: Callable[..., Any]) -> bool:
    """Whether a function has TRL's signature: it takes `completions` by name."""
    if inspect.isclass(function):
        return False
    parameter = inspect.signature(function).parameters.get("completions")
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


class RewardFunctionVerifier:
    """Calls the function with one completion; no canaries.

    It is given `prompts` (the question's text), `completions`, `answer`, and the columns of
    `data.fields.metadata`, as far as its signature takes them. With `messages` a completion is a list of one
    chat message, and a prompt likewise, as TRL has them for conversations; with `text` both are texts.
    A value from `threshold` on is reward 1; without a threshold it must be 0 or 1.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        threshold: float | None = None,
        completions: Completions = "text",
    ) -> None:
        self.name = name
        self._function = function
        self._threshold = threshold
        self._as_messages = completions == "messages"
        parameters = inspect.signature(function).parameters.values()
        self._takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters)
        self._takes = {one.name for one in parameters}

    def grade(self, question: Question, response: str) -> Verdict:
        """Call the function.

        Raises TypeError for what is no list of one number, ValueError for a number that is neither 0 nor 1
        where there is no threshold: the pool makes both the verdict `error`, with the text as its detail.
        """
        columns: dict[str, Any] = {
            **{key: [value] for key, value in question.metadata.items()},
            "answer": [question.answer],
            "prompts": [self._as_turn("user", question.text)],
            "completions": [self._as_turn("assistant", response)],
        }
        given = {key: value for key, value in columns.items() if self._takes_all or key in self._takes}
        return self._verdict(self._function(**given))

    def canaries(self) -> list[Canary]:
        """None: only the function's author knows what is right."""
        return []

    def _as_turn(self, role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if self._as_messages else text

    def _verdict(self, rewards: Any) -> Verdict:
        if not isinstance(rewards, list | tuple) or len(rewards) != 1:
            raise TypeError(
                f"the reward function `{self.name}` returned {rewards!r} for one completion; it must return a"
                " list of one number"
            )
        (value,) = rewards
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(
                f"the reward function `{self.name}` returned {value!r}, which is no finite number"
            )
        if self._threshold is not None:
            right = value >= self._threshold
        elif value in (0, 1):
            right = value == 1
        else:
            raise ValueError(
                f"the reward function `{self.name}` returned {value:g}, and a reward is 0 or 1: set"
                " verifier.threshold, from which on a value counts as 1"
            )
        return Verdict(Outcome.CORRECT if right else Outcome.WRONG, f"reward {value:g}")
