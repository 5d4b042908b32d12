"""Which questions phase 2 asks next, by how often the student solves them (PACED, arXiv 2603.11178).

A question that is always solved, or never, teaches little. With solve rate p its weight is p (1 - p), and
never less than `LEAST_WEIGHT`. Rates are estimated from the verdicts of phase 2 itself, so they cost no
response: a question's own verdicts count beside those of its kind, as `KIND_RESPONSES` responses more.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sdzero.method.graded import Graded
from sdzero.questions.question import Question
from sdzero.rollout.engine import seed_of

LEAST_WEIGHT = 0.05
"""A fifth of the largest weight, which is 0.25 at p = 0.5."""
KIND_RESPONSES = 2
FADING = 0.99
"""How much of a kind's verdicts is left after each of its further responses: the student changes."""


class SolveRates:
    """Solve rates of questions as far as they are known, and a weighted choice by them."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._questions = list(questions)
        self._own: dict[str, list[float]] = {}
        self._kinds: dict[str, list[float]] = {}

    def note(self, graded: Iterable[Graded]) -> None:
        """Count verdicts; those that are our own fault are left out."""
        for one in graded:
            if not one.verdict.counts:
                continue
            own = self._own.setdefault(one.question.id, [0.0, 0.0])
            own[0] += one.reward
            own[1] += 1
            kind = self._kinds.setdefault(one.question.kind, [0.0, 0.0])
            kind[0] = FADING * kind[0] + one.reward
            kind[1] = FADING * kind[1] + 1

    def rate(self, question: Question) -> float:
        """The estimated solve rate; 0.5 where nothing is known."""
        right, seen = self._kinds.get(question.kind, [0.0, 0.0])
        of_kind = (right + 1) / (seen + 2)
        own_right, own_seen = self._own.get(question.id, [0.0, 0.0])
        return (own_right + KIND_RESPONSES * of_kind) / (own_seen + KIND_RESPONSES)

    def choose(self, count: int, seed: int, step: int) -> list[Question]:
        """`count` distinct questions of a step, drawn in proportion to their weights.

        Efraimidis and Spirakis' way: the largest of u ** (1 / weight).
        """
        rng = random.Random(seed_of(seed, "question-sampling", step))
        keys = []
        for number, question in enumerate(self._questions):
            rate = self.rate(question)
            weight = max(rate * (1 - rate), LEAST_WEIGHT)
            keys.append((rng.random() ** (1 / weight), number))
        return [self._questions[number] for _, number in sorted(keys, reverse=True)[:count]]

    def to_json(self) -> dict[str, Any]:
        """What is kept in a checkpoint."""
        return {"questions": self._own, "kinds": self._kinds}

    def restore(self, stored: Mapping[str, Any]) -> None:
        """Take up what a checkpoint kept."""
        self._own = {name: list(own) for name, own in stored["questions"].items()}
        self._kinds = {name: list(own) for name, own in stored["kinds"].items()}
