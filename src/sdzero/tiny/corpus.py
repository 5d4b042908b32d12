"""The synthetic documents that an embedded base model is pre-trained on.

A document is one exchange in the chat format: a question, and an answer made of one attempt or of
several, where each further attempt follows the control phrase that fits the verdict on the attempt
before it. That is how the base model comes to know what the two phrases mean, as a large model does
from ordinary text. After a wrong attempt the next one is right in `SHARE_REVISED_RIGHT` of the cases
(in more where first attempts are right more often): revising helps, but far from always. A right attempt
is told again, as it was or, in a world with false starts, without them.

There are two parts. In the `pretraining` part the easy kinds are never done wrong; in the `tuning` part
every kind has its misconception, so that the model also learns to mend rare mistakes. In some worlds a
share of the documents shows the reference answer below the question; attempts are right more often there.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sdzero.tiny.problem import Problem, is_pretraining
from sdzero.tiny.worlds import World

SHARE_WITH_REVISIONS = 0.5
SHARE_REVISED_RIGHT = 0.35
SHARE_STOP_AFTER_RIGHT = 0.7
SHARE_RIGHT_WITH_HINT = 0.6
REVISION_COUNTS = (1, 1, 2, 3)
PHRASE_CORRECT = "Let me rephrase the above solution."
PHRASE_WRONG = "Wait, this response is not correct, let me start over."
HINT = "{question}\n\nThe answer is {answer}."
"""The user's turn of a document that shows the reference answer."""


Part = Literal["pretraining", "tuning"]


@dataclass(frozen=True)
class Document:
    """One exchange. `pieces` alternate attempt, separator-phrase-separator, attempt, ...

    With `hinted`, the user's turn shows the reference answer below the question.
    """

    problem: Problem
    pieces: tuple[str, ...]
    hinted: bool = False

    @property
    def prompt(self) -> str:
        """The user's turn."""
        return with_hint(self.problem) if self.hinted else self.problem.text


def with_hint(problem: Problem) -> str:
    """A question with its reference answer below it."""
    return HINT.format(question=problem.text, answer=problem.answer)


def joined_phrase(phrase: str) -> str:
    """A control phrase with the blank lines around it, as the Reviser's context has it."""
    return f"\n\n{phrase}\n\n"


def draw_document(rng: random.Random, part: Part, world: World) -> Document:
    """Draw one document from the pre-training side of the split."""
    problem = world.draw_problem(rng, rng.choice(list(world.share_right)))
    while not is_pretraining(problem.text):
        problem = world.draw_problem(rng, problem.kind)
    early = part == "pretraining"
    share_right = world.share_right[problem.kind]
    if early and not world.is_hard(problem.kind):
        share_right = 1.0
    # A world without hints draws no number here, so that its stream is the same as before there were any.
    hinted = world.hint_share > 0 and rng.random() < world.hint_share
    if hinted:
        share_right = max(share_right, SHARE_RIGHT_WITH_HINT)
    attempt = world.solution(problem, rng.random() < share_right, early)
    pieces = [attempt]
    if rng.random() < SHARE_WITH_REVISIONS:
        for _ in range(rng.choice(REVISION_COUNTS)):
            is_right = world.is_right(problem, attempt)
            phrase = PHRASE_CORRECT if is_right else PHRASE_WRONG
            if is_right:
                attempt = world.rephrased(attempt)
            else:
                attempt = world.solution(problem, rng.random() < max(share_right, SHARE_REVISED_RIGHT), early)
            pieces += [joined_phrase(phrase), attempt]
            if is_right and rng.random() < SHARE_STOP_AFTER_RIGHT:
                break
    return Document(problem, tuple(pieces), hinted)


def documents(seed: int, part: Part, world: World) -> Iterator[Document]:
    """An endless stream of documents, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        yield draw_document(rng, part, world)
