"""What the problems of all worlds have in common: a text, an answer, and a side of the split.

Every problem belongs to exactly one side by the hash of its text: the corpus of the base model draws from
45 in 100, questions for post-training and evaluation from the rest. Nothing here imports torch.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

PRETRAINING_SHARE = 45
"""Per cent of the distinct problems, by hash, that the pre-training corpus draws from."""


@dataclass(frozen=True)
class Problem:
    """One problem. `text` is the whole question; `operands` are what its kind's procedures work on."""

    kind: str
    operands: tuple[Any, ...]
    text: str
    answer: int | str


def is_pretraining(text: str) -> bool:
    """Whether a question's text lies on the pre-training side of the split."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < PRETRAINING_SHARE


def unseen_problems(kinds: Iterable[str], all_problems: Callable[[str], Iterator[Problem]]) -> list[Problem]:
    """All distinct problems that the pre-training corpus never draws from, kinds interleaved evenly.

    The list takes turns over the kinds (each shuffled by a fixed seed), and ends with what the larger
    kinds have left, so any leading part of it is balanced as far as the kinds reach.
    """
    rng = random.Random(0)
    columns = []
    for kind in kinds:
        column = [problem for problem in all_problems(kind) if not is_pretraining(problem.text)]
        rng.shuffle(column)
        columns.append(column)
    longest = max(len(column) for column in columns)
    return [column[i] for i in range(longest) for column in columns if i < len(column)]


def boxed_text(text: str) -> str | None:
    """The content of the last `\\boxed{}` of a solution, or None; these worlds have no braces in it."""
    _, found, tail = text.rpartition("\\boxed{")
    content, closed, _ = tail.partition("}")
    return content if found and closed else None
