"""The world of starts: which number makes the equation true? Found by trial, with honest false starts.

A question is an equation such as `7*x+12=54`, with x from 2 to 8. A solution tries 5 first and works out
what it comes to; if that is not the value asked for, it says `wait` and tries the next number on the side
where the answer must lie: `5:35+12=47 wait 6:42+12=54\\boxed{6}`. So the responses of the base model are
right because of trials that fail: one to three in every right solution, since x is never 5. Each kind has
one of two misconceptions, of which neither ever gives the right answer: the first trial is taken for the
answer although it does not fit, or the search goes to the wrong side and ends there. Somebody who rephrases
a right solution knows the answer, and writes the last trial only. Nothing here imports torch.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from sdzero.tiny.problem import Problem, boxed_text, unseen_problems

FIRST_TRIAL = 5
UNKNOWNS = (2, 3, 4, 6, 7, 8)
"""What x may be: up to three away from the first trial, and never the first trial itself."""
FALSE_START = " wait "

_SMALL = range(2, 10)
_ADDED = range(11, 100)
_MINUEND = range(50, 100)
_INNER = range(2, 31)
_OUTER = range(11, 40)


@dataclass(frozen=True)
class Kind:
    """How the equations of one kind look, and how a trial is worked out.

    `template` takes a and b; `terms` gives the two sides of the operation that a trial writes, from x, a
    and b. With `wrong_side` the misconception is to look on the wrong side, else to take the first trial.
    """

    template: str
    second: range
    operator: str
    terms: Callable[[int, int, int], tuple[int, int]]
    share_right: float
    wrong_side: bool

    def value(self, x: int, a: int, b: int) -> int:
        """The left side of the equation."""
        left, right = self.terms(x, a, b)
        return {"+": left + right, "-": left - right, "*": left * right}[self.operator]

    def trial(self, x: int, a: int, b: int) -> str:
        """One trial, as it is written: `6:42+12=54`."""
        left, right = self.terms(x, a, b)
        return f"{x}:{left}{self.operator}{right}={self.value(x, a, b)}"


KINDS: dict[str, Kind] = {
    "a*x+b": Kind("{}*x+{}", _ADDED, "+", lambda x, a, b: (a * x, b), 0.05, wrong_side=False),
    "b-a*x": Kind("{1}-{0}*x", _MINUEND, "-", lambda x, a, b: (b, a * x), 0.10, wrong_side=False),
    "x*a-b": Kind("x*{}-{}", _ADDED, "-", lambda x, a, b: (a * x, b), 0.08, wrong_side=False),
    "b+x*a": Kind("{1}+x*{0}", _ADDED, "+", lambda x, a, b: (b, a * x), 0.12, wrong_side=True),
    "a*(x+b)": Kind("{}*(x+{})", _INNER, "*", lambda x, a, b: (a, x + b), 0.04, wrong_side=True),
    "a*(b-x)": Kind("{}*({}-x)", _OUTER, "*", lambda x, a, b: (a, b - x), 0.15, wrong_side=True),
    "b+a*x": Kind("{1}+{0}*x", _ADDED, "+", lambda x, a, b: (b, a * x), 0.90, wrong_side=False),
    "x*a+b": Kind("x*{}+{}", _ADDED, "+", lambda x, a, b: (a * x, b), 0.90, wrong_side=True),
    "a*x-b": Kind("{}*x-{}", _ADDED, "-", lambda x, a, b: (a * x, b), 0.90, wrong_side=False),
    "b-x*a": Kind("{1}-x*{0}", _MINUEND, "-", lambda x, a, b: (b, a * x), 0.90, wrong_side=True),
}


def make_problem(kind: str, operands: tuple[int, int, int]) -> Problem:
    """Build one problem from x, a and b. Raises KeyError for an unknown kind."""
    rules = KINDS[kind]
    x, a, b = operands
    return Problem(kind, operands, f"{rules.template.format(a, b)}={rules.value(x, a, b)}", str(x))


def all_problems(kind: str) -> Iterator[Problem]:
    """Every distinct problem of a kind, in a fixed order."""
    return (make_problem(kind, operands) for operands in product(UNKNOWNS, _SMALL, KINDS[kind].second))


def draw_problem(rng: random.Random, kind: str) -> Problem:
    """Draw one problem of a kind at random, from both sides of the split."""
    return make_problem(kind, (rng.choice(UNKNOWNS), rng.choice(_SMALL), rng.choice(KINDS[kind].second)))


def solution(problem: Problem, right: bool = True, early: bool = False) -> str:
    """Write out the search, rightly or by the kind's misconception, which is the same early on."""
    rules = KINDS[problem.kind]
    x, a, b = problem.operands
    towards = 1 if x > FIRST_TRIAL else -1
    if right:
        tried = range(FIRST_TRIAL, x + towards, towards)
    elif rules.wrong_side:
        tried = range(FIRST_TRIAL, FIRST_TRIAL - 2 * towards, -towards)
    else:
        tried = range(FIRST_TRIAL, FIRST_TRIAL + 1)
    return f"{FALSE_START.join(rules.trial(number, a, b) for number in tried)}\\boxed{{{tried[-1]}}}"


def rephrased(attempt: str) -> str:
    """A right solution told again, without its false starts."""
    return attempt.rpartition(FALSE_START)[2]


def false_starts(text: str) -> int:
    """How many trials a text gives up."""
    return text.count(FALSE_START)


def is_right(problem: Problem, text: str) -> bool:
    """Whether a solution's box holds the answer."""
    return boxed_text(text) == problem.answer


def post_training_problems() -> list[Problem]:
    """All problems that the corpus never draws from, kinds interleaved evenly."""
    return unseen_problems(KINDS, all_problems)
