"""The five worlds, each a family of questions with a base model of its own, under one interface.

The corpus, the build and the check of a base model work on any of them. Nothing here imports torch.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from sdzero.tiny import arithmetic, edits, spelling, starts, walks
from sdzero.tiny.problem import Problem, boxed_text

HARD_BELOW = 0.5
"""A kind is hard if the share of first attempts that are right is below this; the others are easy."""


@dataclass(frozen=True)
class World:
    """One family of problems.

    `share_right` gives, per kind, the share of first attempts in the corpus that are right. `solution`
    takes the problem, whether it is to be right, and whether it is for the first part of training.
    `hint_share` of the documents show the reference answer below the question. `fixed_texts` get a token
    each and everything else is tokenised byte by byte; without any, the tokenizer learns its own merges.
    `pretraining_steps` are the optimizer steps that the base model was pre-trained for. `outcome` is what
    a response comes to, None if nothing: two responses with the same outcome are graded alike. `rephrased`
    is how a right attempt is told again after its control phrase: in most worlds just as it was.
    """

    name: str
    share_right: Mapping[str, float]
    all_problems: Callable[[str], Iterator[Problem]]
    draw_problem: Callable[[random.Random, str], Problem]
    solution: Callable[[Problem, bool, bool], str]
    is_right: Callable[[Problem, str], bool]
    post_training_problems: Callable[[], list[Problem]]
    pretraining_steps: int
    hint_share: float = 0.0
    fixed_texts: tuple[str, ...] = ()
    outcome: Callable[[str], str | None] = boxed_text
    rephrased: Callable[[str], str] = str

    def is_hard(self, kind: str) -> bool:
        """Whether most first attempts at a kind are wrong."""
        return self.share_right[kind] < HARD_BELOW


class _Kind(Protocol):
    @property
    def share_right(self) -> float: ...


class _Module(Protocol):
    """What a world's module has. `KINDS` are in the order in which the kinds are told."""

    @property
    def KINDS(self) -> Mapping[str, _Kind]: ...  # noqa: N802
    @property
    def __name__(self) -> str: ...
    def all_problems(self, kind: str) -> Iterator[Problem]: ...
    def draw_problem(self, rng: random.Random, kind: str) -> Problem: ...
    def solution(self, problem: Problem, right: bool, early: bool) -> str: ...
    def is_right(self, problem: Problem, text: str) -> bool: ...
    def post_training_problems(self) -> list[Problem]: ...


def _world(
    module: _Module,
    pretraining_steps: int,
    hint_share: float = 0.0,
    fixed_texts: tuple[str, ...] = (),
    outcome: Callable[[str], str | None] = boxed_text,
    rephrased: Callable[[str], str] = str,
) -> World:
    """The world that a module describes; it has the module's name."""
    return World(
        name=module.__name__.rpartition(".")[2],
        share_right={name: kind.share_right for name, kind in module.KINDS.items()},
        all_problems=module.all_problems,
        draw_problem=module.draw_problem,
        solution=module.solution,
        is_right=module.is_right,
        post_training_problems=module.post_training_problems,
        pretraining_steps=pretraining_steps,
        hint_share=hint_share,
        fixed_texts=fixed_texts,
        outcome=outcome,
        rephrased=rephrased,
    )


ARITHMETIC = _world(arithmetic, pretraining_steps=5_000)
SPELLING = _world(
    spelling, pretraining_steps=5_000, hint_share=0.1, fixed_texts=(spelling.QUESTION, "\\boxed{")
)
WALKS = _world(
    walks,
    pretraining_steps=2_500,
    hint_share=0.1,
    fixed_texts=(
        *(" R F", " L F", " U F", " L B", " R) F", "2(F", "S F"),
        *("N(", "S(", ");N(", ");E(", ");S(", ");W(", ")\\boxed{(", ")}"),
    ),
)
EDITS = _world(
    edits, pretraining_steps=3_000, hint_share=0.1, fixed_texts=edits.FIXED_TEXTS, outcome=edits.output_of
)
STARTS = _world(
    starts,
    pretraining_steps=3_000,
    hint_share=0.1,
    fixed_texts=(starts.FALSE_START, "\\boxed{"),
    rephrased=starts.rephrased,
)

WORLDS = {world.name: world for world in (ARITHMETIC, SPELLING, WALKS, EDITS, STARTS)}
