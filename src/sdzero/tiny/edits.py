"""The world of edits: three steps that edit words, answered by a small Python program.

A question is e.g. `Edit each word in Python: reverse; drop 3; last 4`; a response is a fenced block with a
program that reads words and prints the edited ones, a line of code for each step. Two of the steps are
plain ones; the third gives the problem its kind. Each kind has a misconception: a wrong line for its step,
which gives other words than the right one on every word of the tests. Here no program is run: what one
prints is found by reading its lines. Nothing here imports torch.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product

from sdzero.questions.programs import ProgramTask, StdioCase, StdioTests
from sdzero.tiny.problem import Problem, unseen_problems

QUESTION = "Edit each word in Python: "
SEPARATOR = "; "
HEAD = "```python\nfor s in open(0).read().split():"
TAIL = "\n print(s)\n```"

TEST_WORDS = (
    "pHkZtQaWmXgRcEoVyLsUbNdJiAwTfKxPzGhSqMvBlDrCeO",
    "TgLwzYbKmEnRxFaUqDsIjHvCoPtWhXkGyZlBrNcAe",
    "qVsBiJnMfZdWuKpXhGyRoLcTaEwSkQbHtUmDx",
)
"""What the programs read in the tests. No letter comes twice in a word, so that an edit cannot hide."""

PROBLEMS_PER_KIND = 4_000
"""At most; the first by the hash of the text. It bounds the time that listing takes."""

LONGEST = 400
"""Letters; a program whose words grow longer is wrong. No right one comes near, and doubling goes on fast."""

Step = tuple[str, int]
"""An operation and its number, which is 0 for an operation without one."""

NUMBERS = range(1, 10)


@dataclass(frozen=True)
class Operation:
    """What one step asks for.

    `edit` is its meaning, the reference that tests are made from. `code` is the right-hand side of its line
    of Python, where {n} is the number and {before} and {after} are the numbers next to it. A word must have
    more letters than `uses` times the number: no step may use up a word.
    """

    edit: Callable[[str, int], str]
    code: str
    numbers: range = NUMBERS
    uses: int = 1


@dataclass(frozen=True)
class Kind:
    """The wrong line for the operation of the same name, and how often first attempts are right."""

    wrong: str
    share_right: float


PLAIN = {
    "drop": Operation(lambda word, n: word[n:], "s[{n}:]"),
    "add": Operation(lambda word, n: f"{word}{n}", "s+'{n}'", uses=0),
    "reverse": Operation(lambda word, n: "".join(reversed(word)), "s[::-1]", numbers=range(1)),
}
"""The operations of the other two steps; they are always written rightly."""

SPECIAL = {
    "last": Operation(lambda word, n: word[len(word) - n :], "s[-{n}:]"),
    "chop": Operation(lambda word, n: word[: len(word) - n], "s[:-{n}]"),
    "rotate": Operation(lambda word, n: word[n:] + word[:n], "s[{n}:]+s[:{n}]"),
    "every": Operation(
        lambda word, n: "".join(word[place] for place in range(0, len(word), n)), "s[::{n}]", range(2, 10)
    ),
    "from": Operation(lambda word, n: word[n - 1 :], "s[{before}:]"),
    "flip": Operation(
        lambda word, n: "".join(reversed(word[:n])) + word[n:], "s[:{n}][::-1]+s[{n}:]", range(2, 10)
    ),
    "first": Operation(lambda word, n: word[:n], "s[:{n}]"),
    "cut": Operation(lambda word, n: word[: n - 1] + word[n:], "s[:{before}]+s[{n}:]", range(1, 9)),
    "double": Operation(lambda word, n: word[:n] + word, "s[:{n}]+s"),
    "swap": Operation(
        lambda word, n: word[len(word) - n :] + word[n : len(word) - n] + word[:n],
        "s[-{n}:]+s[{n}:-{n}]+s[:{n}]",
        uses=2,
    ),
}
"""The operations that give a problem its kind."""

OPERATIONS = PLAIN | SPECIAL

KINDS = {
    "last": Kind("s[{n}:]", 0.05),
    "chop": Kind("s[:{n}]", 0.10),
    "rotate": Kind("s[-{n}:]+s[:-{n}]", 0.08),
    "every": Kind("s[{n}::]", 0.12),
    "from": Kind("s[{n}:]", 0.04),
    "flip": Kind("s[:{n}]+s[{n}:][::-1]", 0.15),
    "first": Kind("s[{n}:]", 0.90),
    "cut": Kind("s[:{n}]+s[{after}:]", 0.90),
    "double": Kind("s+s[:{n}]", 0.90),
    "swap": Kind("s[-{n}:]+s[:{n}]", 0.90),
}

FIXED_TEXTS = (
    *(QUESTION, SEPARATOR, *(f"{name} " for name in OPERATIONS if name != "reverse"), "reverse"),
    *(HEAD, TAIL, "\n s=s", "\n s=s[", "\n s=s+'", "+s", "+s[", "]", ":]", ":-", "[::-1]", "::-1]", "::"),
)
"""The pieces that questions and programs are made of; each is one token of the base model."""


def question_of(steps: tuple[Step, ...]) -> str:
    """The text that asks for some steps."""
    return QUESTION + SEPARATOR.join(f"{name} {n}" if n else name for name, n in steps)


def program_of(steps: tuple[Step, ...], wrong: bool = False) -> str:
    """The response with the program of some steps; `wrong`: with the misconception of the special one."""
    lines = []
    for name, n in steps:
        code = KINDS[name].wrong if wrong and name in KINDS else OPERATIONS[name].code
        lines.append("\n s=" + code.format(n=n, before=n - 1, after=n + 1))
    return HEAD + "".join(lines) + TAIL


def edited(word: str, steps: tuple[Step, ...]) -> str | None:
    """What the steps make of a word, or None if one of them would use up all that is left of it."""
    for name, n in steps:
        operation = OPERATIONS[name]
        if len(word) <= operation.uses * n:
            return None
        word = operation.edit(word, n)
    return word


def expected_output(steps: tuple[Step, ...]) -> str | None:
    """What a right program prints in the tests, or None if the steps use up a word."""
    words = [edited(word, steps) for word in TEST_WORDS]
    return "".join(f"{word}\n" for word in words) if all(words) else None


_NUMBER = r"-?(?:0|[1-9][0-9]*)"
_SLICE = re.compile(rf"\[({_NUMBER})?:({_NUMBER})?(?::({_NUMBER})?)?\]")
_DIGIT = re.compile(r"'([0-9])'")


def output_of(text: str) -> str | None:
    """What the program in the last block of a response prints in the tests.

    Programs are understood that look as the world writes them, with any lines that set `s` to a sum of
    slices of `s` and of digits in quotes. None for any other text, and if a block is not closed.
    """
    before, begun, rest = text.rpartition(HEAD)
    body, ended, behind = rest.partition(TAIL)
    if not (begun and ended) or "```" in body + behind or before.count("```") % 2:
        return None
    first, *lines = body.split("\n")
    stands_alone = before[-1:] in ("", "\n") and behind[:1] in ("", "\n")
    if first or not stands_alone:
        return None
    words: list[str] = []
    for word in TEST_WORDS:
        after: str | None = word
        for line in lines:
            after = None if after is None else _after_line(after, line)
        if after is None:
            return None
        words.append(after)
    return "".join(f"{word}\n" for word in words)


def _after_line(word: str, line: str) -> str | None:
    """The value of `s` after a line of a program, or None if the line is not understood."""
    if not line.startswith(" s="):
        return None
    value = ""
    for term in line.removeprefix(" s=").split("+"):
        part = _term(word, term)
        if part is None or len(value) + len(part) > LONGEST:
            return None
        value += part
    return value


def _term(word: str, term: str) -> str | None:
    """The value of `'7'`, `s`, or slices of `s`; None for anything else."""
    if digit := _DIGIT.fullmatch(term):
        return digit[1]
    if not term.startswith("s"):
        return None
    at = 1
    while part := _SLICE.match(term, at):
        start, stop, step = (int(number) if number else None for number in part.groups())
        if step == 0:
            return None
        word, at = word[start:stop:step], part.end()
    return word if at == len(term) else None


def make_problem(kind: str, steps: tuple[Step, ...]) -> Problem:
    """The problem of three steps, one of which is the kind's. Its answer is the right program."""
    return Problem(kind, steps, question_of(steps), program_of(steps))


def _shows(steps: tuple[Step, ...]) -> bool:
    """Whether no step uses up a word, and the misconception gives another one on every word of the tests."""
    right, wrong = expected_output(steps), output_of(program_of(steps, wrong=True))
    if right is None:
        return False
    assert wrong is not None, "the world's own programs are understood"
    return not any(a == b for a, b in zip(right.splitlines(), wrong.splitlines(), strict=True))


def _all_steps(kind: str) -> Iterator[tuple[Step, ...]]:
    """The kind's operation, in each place, among any two plain ones, with all numbers."""
    plain = [(name, n) for name, operation in PLAIN.items() for n in operation.numbers]
    for n, one, other in product(SPECIAL[kind].numbers, plain, plain):
        yield from (((kind, n), one, other), (one, (kind, n), other), (one, other, (kind, n)))


@lru_cache
def problems(kind: str) -> tuple[Problem, ...]:
    """The problems of a kind, in the order of their hashes. Raises KeyError for an unknown kind."""
    ranked = sorted(_all_steps(kind), key=lambda steps: hashlib.sha256(question_of(steps).encode()).digest())
    shown = (steps for steps in ranked if _shows(steps))
    return tuple(make_problem(kind, steps) for steps in islice(shown, PROBLEMS_PER_KIND))


def all_problems(kind: str) -> Iterator[Problem]:
    """Every distinct problem of a kind, in a fixed order."""
    return iter(problems(kind))


def draw_problem(rng: random.Random, kind: str) -> Problem:
    """Draw one problem of a kind at random, from both sides of the split."""
    return rng.choice(problems(kind))


def solution(problem: Problem, right: bool = True, early: bool = False) -> str:
    """The program, right or by the kind's misconception, which is the same early on."""
    return program_of(problem.operands, wrong=not right)


def is_right(problem: Problem, text: str) -> bool:
    """Whether the program in a response prints what is expected; it is read, not run."""
    return output_of(text) == expected_output(problem.operands)


def task_of_problem(problem: Problem) -> ProgramTask:
    """What is needed to grade a response by running it: one test, whose words the program reads as lines."""
    output = expected_output(problem.operands)
    assert output is not None, "problems whose steps use up a word are left out"
    case = StdioCase(input="".join(f"{word}\n" for word in TEST_WORDS), output=output)
    return ProgramTask(tests=StdioTests(cases=[case]))


def post_training_problems() -> list[Problem]:
    """All problems that the corpus never draws from, kinds interleaved evenly."""
    return unseen_problems(KINDS, all_problems)
