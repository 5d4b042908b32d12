"""The world of spelling: reasoning-gym's task `spell_backward`, and pupils who are wrong in set ways.

A problem is a word of five to eight lower-case letters, to be spelt backward; the question is the text
that reasoning-gym makes, the words are those of its own list. The kinds are ways in which words look; the
first that fits a word is its kind. Each has a misconception that never gives the right answer. Source:
https://github.com/open-thought/reasoning-gym, `algorithmic/spell_backward.py`. Nothing here imports torch.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from sdzero.tiny.problem import Problem, boxed_text, unseen_problems

TASK = "spell_backward"
QUESTION = "Spell this word backward (example: sun -> nus): "
"""What stands before the word, letter by letter as in reasoning-gym."""

WORD_LENGTHS = (3, 10)
"""The task's own default limits; they stand in every entry that it makes, and change no score."""

WORDS_PER_KIND = 4_000
"""At most; the first by the hash of the word. It bounds the time that listing takes."""

_WORD = re.compile(r"[a-z]{5,8}")
_PAIR = re.compile(r"th|sh|ch|ph|ck")
_DOUBLED = re.compile(r"(.)\1")
_ENDING = re.compile(r"(?:ing|er|ed)\Z")


@dataclass(frozen=True)
class Kind:
    """Which words are of this kind, how a pupil spells them, and how often right at the first attempt."""

    fits: Callable[[str], bool]
    wrong: Callable[[str], str]
    share_right: float


def _pairs_kept(word: str) -> str:
    return _PAIR.sub(lambda pair: pair[0][::-1], word)[::-1]


def _ending_kept(word: str) -> str:
    ending = _ENDING.search(word)
    if ending is None:
        raise ValueError(f"{word} has none of the endings")
    return ending[0] + word[: ending.start()][::-1]


def _middle_pair_kept(word: str) -> str:
    middle = len(word) // 2
    return word[middle + 1 :][::-1] + word[middle - 1 : middle + 1] + word[: middle - 1][::-1]


def _middle_left_out(word: str) -> str:
    middle = len(word) // 2
    return (word[:middle] + word[middle + 1 :])[::-1]


KINDS: dict[str, Kind] = {
    "th, sh, ch, ph or ck": Kind(lambda word: bool(_PAIR.search(word)), _pairs_kept, 0.05),
    "doubled letter": Kind(
        lambda word: bool(_DOUBLED.search(word)), lambda word: _DOUBLED.sub(r"\1", word)[::-1], 0.10
    ),
    "ends with ing, er or ed": Kind(lambda word: bool(_ENDING.search(word)), _ending_kept, 0.08),
    "begins with a vowel": Kind(lambda word: word[0] in "aeiou", lambda word: word[0] + word[1:][::-1], 0.12),
    "ends with e": Kind(lambda word: word[-1] == "e", lambda word: word[:-1][::-1], 0.04),
    "ends with y": Kind(lambda word: word[-1] == "y", lambda word: "i" + word[:-1][::-1], 0.15),
    "ends with s": Kind(lambda word: word[-1] == "s", lambda word: word[:-1][::-1], 0.90),
    "ends with n, t or l": Kind(lambda word: word[-1] in "ntl", lambda word: word[-1] + word[::-1], 0.90),
    "other, even length": Kind(lambda word: len(word) % 2 == 0, _middle_pair_kept, 0.90),
    "other, odd length": Kind(lambda word: len(word) % 2 == 1, _middle_left_out, 0.90),
}


def kind_of(word: str) -> str:
    """The first kind that fits a word; the last two fit every word."""
    return next(name for name, kind in KINDS.items() if kind.fits(word))


@lru_cache(maxsize=1)
def words() -> dict[str, tuple[str, ...]]:
    """The words of each kind, in the order of their hashes."""
    from reasoning_gym.data import read_data_file

    columns: dict[str, list[str]] = {kind: [] for kind in KINDS}
    listed = {line.strip() for line in read_data_file("words3to10.txt").splitlines()}
    for word in sorted(listed, key=lambda word: hashlib.sha256(word.encode()).digest()):
        if not _WORD.fullmatch(word):
            continue
        kind = kind_of(word)
        if len(columns[kind]) < WORDS_PER_KIND and KINDS[kind].wrong(word) != word[::-1]:
            columns[kind].append(word)
    return {kind: tuple(column) for kind, column in columns.items()}


def make_problem(kind: str, word: str) -> Problem:
    """The problem of one word, whose kind the caller knows."""
    return Problem(kind, (word,), QUESTION + word, word[::-1])


def all_problems(kind: str) -> Iterator[Problem]:
    """Every distinct problem of a kind, in a fixed order."""
    return (make_problem(kind, word) for word in words()[kind])


def draw_problem(rng: random.Random, kind: str) -> Problem:
    """Draw one problem of a kind at random, from both sides of the split."""
    return make_problem(kind, rng.choice(words()[kind]))


def solution(problem: Problem, right: bool = True, early: bool = False) -> str:
    """The answer in a box, right or by the kind's misconception, which is the same early on."""
    (word,) = problem.operands
    return f"\\boxed{{{word[::-1] if right else KINDS[problem.kind].wrong(word)}}}"


def is_right(problem: Problem, text: str) -> bool:
    """Whether a solution's box holds the answer."""
    return boxed_text(text) == problem.answer


def post_training_problems() -> list[Problem]:
    """All problems that the corpus never draws from, kinds interleaved evenly."""
    return unseen_problems(KINDS, all_problems)
