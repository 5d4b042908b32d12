"""The world of arithmetic, in which the demo's base model grew up.

A *problem* is a short expression of one of eleven kinds, built from small operands, so that the
facts needed (which sum, which product) are few while the distinct questions are many (39,186).
Each kind has a *misconception*, a procedure that is wrong in the same way every time: left to right in
spite of precedence, a bracket ignored, the smaller digit taken from the larger, a carry dropped. Six
kinds are mostly done by their misconception in the corpus, five seldom. A model that is trained on it
therefore makes errors that carry information, which is what self-revision needs (errors that are mere
noise teach a Reviser nothing). Nothing here imports torch.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from sdzero.tiny.problem import Problem, unseen_problems

Step = tuple[int, str, int]


@dataclass(frozen=True)
class Kind:
    """How problems of one kind look, how they are solved, and how a pupil gets them wrong.

    `right` and `wrong` give the written solution, by the right procedure and by the misconception.
    `share_right` is the share of first attempts in the corpus that use the right procedure.
    `early_wrong` is the misconception in the first part of training, where that is another one.
    """

    template: str
    operand_ranges: tuple[range, ...]
    allowed: Callable[..., bool]
    value: Callable[..., int]
    right: Callable[..., str]
    wrong: Callable[..., str]
    share_right: float
    early_wrong: Callable[..., str] | None = None


def _apply(left: int, operator: str, right: int) -> int:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    return left * right


def _box(value: int) -> str:
    return f"\\boxed{{{value}}}"


def _chain(*steps: tuple[int | None, str, int | None]) -> str:
    """Write a chain of steps; `None` stands for the value of the step before."""
    value, written = 0, []
    for left, operator, right in steps:
        left_value = value if left is None else left
        right_value = value if right is None else right
        value = _apply(left_value, operator, right_value)
        written.append(f"{left_value}{operator}{right_value}={value}")
    return ";".join(written) + _box(value)


def _columns(tens: Step, units: Step, value: int, carried: bool = False) -> str:
    """Write column arithmetic, units first; `carried` adds the carried one to the tens."""
    written = f"{units[0]}{units[1]}{units[2]}={_apply(*units)};{tens[0]}{tens[1]}{tens[2]}"
    tens_value = _apply(*tens)
    if carried:
        return f"{written}+1={tens_value + 1}{_box(value)}"
    return f"{written}={tens_value}{_box(value)}"


def _add_right(a: int, b: int) -> str:
    carried = a % 10 + b % 10 >= 10
    return _columns((a // 10, "+", b // 10), (a % 10, "+", b % 10), a + b, carried)


def _add_wrong(a: int, b: int) -> str:
    """Misconception: the carry is dropped."""
    value = (a // 10 + b // 10) * 10 + (a % 10 + b % 10) % 10
    return _columns((a // 10, "+", b // 10), (a % 10, "+", b % 10), value)


def _add_overdone(a: int, b: int) -> str:
    """Misconception: a one is carried where there is none."""
    return _columns((a // 10, "+", b // 10), (a % 10, "+", b % 10), a + b + 10, carried=True)


def _subtract_right(a: int, b: int) -> str:
    if a % 10 < b % 10:
        return _columns((a // 10 - 1, "-", b // 10), (a % 10 + 10, "-", b % 10), a - b)
    return _columns((a // 10, "-", b // 10), (a % 10, "-", b % 10), a - b)


def _subtract_wrong(a: int, b: int) -> str:
    """Misconception: in each column the smaller digit is taken from the larger."""
    value = (a // 10 - b // 10) * 10 + (b % 10 - a % 10)
    return _columns((a // 10, "-", b // 10), (b % 10, "-", a % 10), value)


def _subtract_overdone(a: int, b: int) -> str:
    """Misconception: a ten is borrowed where none is needed."""
    return _columns((a // 10 - 1, "-", b // 10), (a % 10, "-", b % 10), a - b - 10)


def _always(*operands: int) -> bool:
    return True


_SMALL = range(2, 10)
_LARGE = range(17, 41)
_TWO_DIGITS = range(11, 90)

KINDS: dict[str, Kind] = {
    # Multiplication before addition, done left to right.
    "a+b*c-d": Kind(
        "{}+{}*{}-{}",
        (_SMALL,) * 4,
        _always,
        lambda a, b, c, d: a + b * c - d,
        lambda a, b, c, d: _chain((b, "*", c), (a, "+", None), (None, "-", d)),
        lambda a, b, c, d: _chain((a, "+", b), (None, "*", c), (None, "-", d)),
        0.05,
    ),
    # The bracket is ignored.
    "a-(b-c)+d": Kind(
        "{}-({}-{})+{}",
        (_LARGE, _SMALL, _SMALL, _SMALL),
        lambda a, b, c, d: b > c,
        lambda a, b, c, d: a - (b - c) + d,
        lambda a, b, c, d: _chain((b, "-", c), (a, "-", None), (None, "+", d)),
        lambda a, b, c, d: _chain((a, "-", b), (None, "-", c), (None, "+", d)),
        0.10,
    ),
    # The first sign is carried on, as if a - b - c - d; early on, addition is done first.
    "a-b+c-d": Kind(
        "{}-{}+{}-{}",
        (range(27, 41), _SMALL, _SMALL, _SMALL),
        _always,
        lambda a, b, c, d: a - b + c - d,
        lambda a, b, c, d: _chain((a, "-", b), (None, "+", c), (None, "-", d)),
        lambda a, b, c, d: _chain((a, "-", b), (None, "-", c), (None, "-", d)),
        0.15,
        lambda a, b, c, d: _chain((b, "+", c), (a, "-", None), (None, "-", d)),
    ),
    # Distribution over the first term only.
    "a*(b+c)-d": Kind(
        "{}*({}+{})-{}",
        (_SMALL,) * 4,
        _always,
        lambda a, b, c, d: a * (b + c) - d,
        lambda a, b, c, d: _chain((b, "+", c), (a, "*", None), (None, "-", d)),
        lambda a, b, c, d: _chain((a, "*", b), (None, "+", c), (None, "-", d)),
        0.04,
    ),
    "subtract with borrow": Kind(
        "{}-{}",
        (_TWO_DIGITS, _TWO_DIGITS),
        lambda a, b: a > b and a % 10 < b % 10,
        lambda a, b: a - b,
        _subtract_right,
        _subtract_wrong,
        0.08,
    ),
    "add with carry": Kind(
        "{}+{}",
        (_TWO_DIGITS, _TWO_DIGITS),
        lambda a, b: a % 10 + b % 10 >= 10 and a + b < 100,
        lambda a, b: a + b,
        _add_right,
        _add_wrong,
        0.12,
    ),
    # The last term is left out.
    "(a+b)*c-d": Kind(
        "({}+{})*{}-{}",
        (_SMALL,) * 4,
        _always,
        lambda a, b, c, d: (a + b) * c - d,
        lambda a, b, c, d: _chain((a, "+", b), (None, "*", c), (None, "-", d)),
        lambda a, b, c, d: _chain((a, "+", b), (None, "*", c)),
        0.90,
    ),
    # The last term is left out.
    "a*b+c-d": Kind(
        "{}*{}+{}-{}",
        (_SMALL,) * 4,
        _always,
        lambda a, b, c, d: a * b + c - d,
        lambda a, b, c, d: _chain((a, "*", b), (None, "+", c), (None, "-", d)),
        lambda a, b, c, d: _chain((a, "*", b), (None, "+", c)),
        0.90,
    ),
    # The last term is left out.
    "a+b+c+d": Kind(
        "{}+{}+{}+{}",
        (_SMALL,) * 4,
        _always,
        lambda a, b, c, d: a + b + c + d,
        lambda a, b, c, d: _chain((a, "+", b), (None, "+", c), (None, "+", d)),
        lambda a, b, c, d: _chain((a, "+", b), (None, "+", c)),
        0.90,
    ),
    "add": Kind(
        "{}+{}",
        (_TWO_DIGITS, _TWO_DIGITS),
        lambda a, b: a % 10 + b % 10 < 10 and a + b < 100,
        lambda a, b: a + b,
        _add_right,
        _add_overdone,
        0.90,
    ),
    "subtract": Kind(
        "{}-{}",
        (_TWO_DIGITS, _TWO_DIGITS),
        lambda a, b: a > b and a % 10 >= b % 10,
        lambda a, b: a - b,
        _subtract_right,
        _subtract_overdone,
        0.90,
    ),
}


def make_problem(kind: str, operands: tuple[int, ...]) -> Problem:
    """Build one problem. Raises KeyError for an unknown kind."""
    rules = KINDS[kind]
    return Problem(kind, operands, rules.template.format(*operands), rules.value(*operands))


def all_problems(kind: str) -> Iterator[Problem]:
    """Every distinct problem of a kind, in a fixed order."""
    rules = KINDS[kind]
    for operands in product(*rules.operand_ranges):
        if rules.allowed(*operands):
            yield make_problem(kind, operands)


def draw_problem(rng: random.Random, kind: str) -> Problem:
    """Draw one problem of a kind at random, from both sides of the split."""
    rules = KINDS[kind]
    while True:
        operands = tuple(rng.choice(choices) for choices in rules.operand_ranges)
        if rules.allowed(*operands):
            return make_problem(kind, operands)


def solution(problem: Problem, right: bool = True, early: bool = False) -> str:
    """Write out a solution, by the right procedure or by the kind's misconception (or its early one)."""
    rules = KINDS[problem.kind]
    wrong = rules.early_wrong if early and rules.early_wrong is not None else rules.wrong
    return (rules.right if right else wrong)(*problem.operands)


def boxed_value(text: str) -> int | None:
    """The integer in the last `\\boxed{}` of a solution, or None."""
    _, found, tail = text.rpartition("\\boxed{")
    digits, closed, _ = tail.partition("}")
    if not found or not closed or not digits.lstrip("-").isdigit():
        return None
    return int(digits)


def is_right(problem: Problem, text: str) -> bool:
    """Whether the last box of a solution holds the answer's value."""
    return boxed_value(text) == problem.answer


def post_training_problems() -> list[Problem]:
    """All distinct problems that the pre-training corpus never draws from, kinds interleaved evenly."""
    return unseen_problems(KINDS, all_problems)
