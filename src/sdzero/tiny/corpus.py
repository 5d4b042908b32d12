"""The synthetic documents that the embedded base model is pre-trained on.

A document is one exchange in the chat format: a question, and an answer made of one attempt or of
several, where each further attempt follows the control phrase that fits the verdict on the attempt
before it. That is how the base model comes to know what the two phrases mean, as a large model does
from ordinary text. After a wrong attempt the next one is right in `SHARE_REVISED_RIGHT` of the cases
(in more where first attempts are right more often): revising helps, but far from always.

There are two parts. In the `pretraining` part the five easy kinds are never done wrong; in the `tuning`
part every kind has its misconception, so that the model also learns to mend rare mistakes.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sdzero.tiny.world import (
    KINDS,
    Problem,
    boxed_value,
    draw_problem,
    is_pretraining,
    solution,
)

SHARE_WITH_REVISIONS = 0.5
SHARE_REVISED_RIGHT = 0.35
SHARE_STOP_AFTER_RIGHT = 0.7
REVISION_COUNTS = (1, 1, 2, 3)
PHRASE_CORRECT = "Let me rephrase the above solution."
PHRASE_WRONG = "Wait, this response is not correct, let me start over."


Part = Literal["pretraining", "tuning"]


@dataclass(frozen=True)
class Document:
    """One exchange. `pieces` alternate attempt, separator-phrase-separator, attempt, ..."""

    problem: Problem
    pieces: tuple[str, ...]


def joined_phrase(phrase: str) -> str:
    """A control phrase with the blank lines around it, as the Reviser's context has it."""
    return f"\n\n{phrase}\n\n"


def draw_document(rng: random.Random, part: Part) -> Document:
    """Draw one document from the pre-training side of the split."""
    problem = draw_problem(rng, rng.choice(list(KINDS)))
    while not is_pretraining(problem.text):
        problem = draw_problem(rng, problem.kind)
    early = part == "pretraining"
    share_right = KINDS[problem.kind].share_right
    if early and share_right > 0.5:
        share_right = 1.0
    attempt = solution(problem, rng.random() < share_right, early)
    pieces = [attempt]
    if rng.random() < SHARE_WITH_REVISIONS:
        for _ in range(rng.choice(REVISION_COUNTS)):
            is_right = boxed_value(attempt) == problem.answer
            phrase = PHRASE_CORRECT if is_right else PHRASE_WRONG
            if not is_right:
                attempt = solution(problem, rng.random() < max(share_right, SHARE_REVISED_RIGHT), early)
            pieces += [joined_phrase(phrase), attempt]
            if is_right and rng.random() < SHARE_STOP_AFTER_RIGHT:
                break
    return Document(problem, tuple(pieces))


def documents(seed: int, part: Part) -> Iterator[Document]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield draw_document(rng, part)
