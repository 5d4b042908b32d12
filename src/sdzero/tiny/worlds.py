"""The three worlds, each a family of questions with a base model of its own, under one interface.

The corpus, the build and the check of a base model work on any of them. Nothing here imports torch.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from sdzero.tiny import arithmetic, spelling, walks
from sdzero.tiny.problem import Problem

HARD_BELOW = 0.5
"""A kind is hard if the share of first attempts that are right is below this; the others are easy."""


@dataclass(frozen=True)
class World:
    """One family of problems.

    `share_right` gives, per kind, the share of first attempts in the corpus that are right. `solution`
    takes the problem, whether it is to be right, and whether it is for the first part of training.
    `hint_share` of the documents show the reference answer below the question. `fixed_texts` get a token
    each and everything else is tokenised byte by byte; without any, the tokenizer learns its own merges.
    `pretraining_steps` are the optimizer steps that the base model was pre-trained for.
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

    def is_hard(self, kind: str) -> bool:
        """Whether most first attempts at a kind are wrong."""
        return self.share_right[kind] < HARD_BELOW


ARITHMETIC = World(
    name="arithmetic",
    share_right={name: kind.share_right for name, kind in arithmetic.KINDS.items()},
    all_problems=arithmetic.all_problems,
    draw_problem=arithmetic.draw_problem,
    solution=arithmetic.solution,
    is_right=arithmetic.is_right,
    post_training_problems=arithmetic.post_training_problems,
    pretraining_steps=5_000,
)
SPELLING = World(
    name="spelling",
    share_right={name: kind.share_right for name, kind in spelling.KINDS.items()},
    all_problems=spelling.all_problems,
    draw_problem=spelling.draw_problem,
    solution=spelling.solution,
    is_right=spelling.is_right,
    post_training_problems=spelling.post_training_problems,
    pretraining_steps=5_000,
    hint_share=0.1,
    fixed_texts=(spelling.QUESTION, "\\boxed{"),
)
WALKS = World(
    name="walks",
    share_right={name: kind.share_right for name, kind in walks.KINDS.items()},
    all_problems=walks.all_problems,
    draw_problem=walks.draw_problem,
    solution=walks.solution,
    is_right=walks.is_right,
    post_training_problems=walks.post_training_problems,
    pretraining_steps=2_500,
    hint_share=0.1,
    fixed_texts=(
        *(" R F", " L F", " U F", " L B", " R) F", "2(F", "S F"),
        *("N(", "S(", ");N(", ");E(", ");S(", ");W(", ")\\boxed{(", ")}"),
    ),
)

WORLDS = {world.name: world for world in (ARITHMETIC, SPELLING, WALKS)}
