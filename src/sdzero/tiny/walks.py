"""The world of walks: where does somebody end who starts at (0,0), and looks north?

`F3` is three steps forward, `B3` three steps backward, `R` and `L` are quarter turns, `U` is a turn round,
`2(...)` does twice what is in the brackets, and a leading `S` means that they look south at first. North is
up (y grows), east is to the right (x grows). A solution writes, for every move, where they look and where
they are after it: `N(0,3);E(2,3)\\boxed{(2,3)}`. Each kind has a misconception that never gives the right
answer. Nothing here imports torch.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from sdzero.tiny.problem import Problem, boxed_text, unseen_problems

STEPS = range(1, 10)
HEADINGS = "NESW"
"""Clockwise: a turn to the right is one place on, a turn to the left one place back."""

_TURNS = {"R": 1, "L": -1, "U": 2}
_UNIT = {"N": (0, 1), "E": (1, 0), "S": (0, -1), "W": (-1, 0)}


@dataclass(frozen=True)
class Kind:
    """How the questions of one kind look, and what is done in them, rightly and by the misconception.

    The letters a to d stand for numbers of steps. In `right` and `wrong` there are only plain moves and
    turns, and `S`; `south_turns` tells that the misconception turns the other way while looking south.
    """

    question: str
    right: str
    wrong: str
    share_right: float
    south_turns: bool = False


def _last_left_out(question: str) -> Kind:
    return Kind(question, question, question.removesuffix(" Fd"), 0.90)


def _turned_in_the_south(question: str, share_right: float) -> Kind:
    return Kind(question, question, question, share_right, south_turns=True)


KINDS: dict[str, Kind] = {
    kind.question: kind
    for kind in (
        _turned_in_the_south("Fa R Fb R Fc R Fd", 0.05),
        _turned_in_the_south("Fa L Fb L Fc L Fd", 0.08),
        # The turn round is not made.
        Kind("Fa R Fb U Fc L Fd", "Fa R Fb U Fc L Fd", "Fa R Fb Fc L Fd", 0.10),
        # Backward is walked forward.
        Kind("Fa R Fb L Bc R Fd", "Fa R Fb L Bc R Fd", "Fa R Fb L Fc R Fd", 0.04),
        # The bracket is done once.
        Kind("2(Fa R) Fb L Fc R Fd", "Fa R Fa R Fb L Fc R Fd", "Fa R Fb L Fc R Fd", 0.12),
        # The start is north all the same.
        Kind("S Fa L Fb R Fc L Fd", "S Fa L Fb R Fc L Fd", "Fa L Fb R Fc L Fd", 0.15),
        _last_left_out("Fa R Fb L Fc R Fd"),
        _last_left_out("Fa L Fb R Fc L Fd"),
        _last_left_out("Fa R Fb R Fc L Fd"),
        _last_left_out("Fa L Fb L Fc R Fd"),
    )
}


def _filled(pattern: str, steps: tuple[int, ...]) -> str:
    """A pattern with numbers of steps for its letters."""
    for letter, number in zip("abcd", steps, strict=True):
        pattern = pattern.replace(letter, str(number))
    return pattern


def walk(moves: str, south_turns: bool = False) -> list[tuple[str, int, int]]:
    """Where they look and where they are after each move of e.g. `S F3 R B2`; turns are no moves.

    With `south_turns`, a turn made while looking south goes the other way. Raises KeyError for other words.
    """
    heading, x, y = 0, 0, 0
    places = []
    for number, word in enumerate(moves.split()):
        if number == 0 and word == "S":
            heading = HEADINGS.index("S")
        elif word[0] in "FB":
            along_x, along_y = _UNIT[HEADINGS[heading]]
            steps = int(word[1:]) if word[0] == "F" else -int(word[1:])
            x, y = x + steps * along_x, y + steps * along_y
            places.append((HEADINGS[heading], x, y))
        else:
            other_way = south_turns and HEADINGS[heading] == "S"
            heading = (heading + (-_TURNS[word] if other_way else _TURNS[word])) % len(HEADINGS)
    return places


def make_problem(kind: str, steps: tuple[int, ...]) -> Problem:
    """Build one problem from its four numbers of steps. Raises KeyError for an unknown kind."""
    rules = KINDS[kind]
    _, x, y = walk(_filled(rules.right, steps))[-1]
    return Problem(kind, steps, _filled(rules.question, steps), f"({x},{y})")


def all_problems(kind: str) -> Iterator[Problem]:
    """Every distinct problem of a kind, in a fixed order."""
    return (make_problem(kind, steps) for steps in product(STEPS, repeat=4))


def draw_problem(rng: random.Random, kind: str) -> Problem:
    """Draw one problem of a kind at random, from both sides of the split."""
    return make_problem(kind, tuple(rng.choice(STEPS) for _ in range(4)))


def solution(problem: Problem, right: bool = True, early: bool = False) -> str:
    """Write out the walk, rightly or by the kind's misconception, which is the same early on."""
    rules = KINDS[problem.kind]
    moves = _filled(rules.right if right else rules.wrong, problem.operands)
    places = walk(moves, south_turns=rules.south_turns and not right)
    _, x, y = places[-1]
    written = ";".join(f"{heading}({x},{y})" for heading, x, y in places)
    return f"{written}\\boxed{{({x},{y})}}"


def is_right(problem: Problem, text: str) -> bool:
    """Whether a solution's box holds the answer."""
    return boxed_text(text) == problem.answer


def post_training_problems() -> list[Problem]:
    """All problems that the corpus never draws from, kinds interleaved evenly."""
    return unseen_problems(KINDS, all_problems)
