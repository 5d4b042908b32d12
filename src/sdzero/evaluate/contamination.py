"""Which questions of a benchmark the recipe trains on: the same text, or a run of 13 words in common.

Two tests, on the questions' texts (of programs: on the statement, without the instruction that all share):

- exact: the texts are equal, with runs of white space as one space;
- overlap: 13 words in a row stand in both, where a word is lower case, without punctuation, between white
  space (Brown et al. 2020, arXiv 2005.14165, appendix C). Runs that stand in more than 10 training questions
  are left out, as there: they are phrases of the trade ("each test contains multiple test cases"). One run
  in common marks a question, which errs on the side of marking (as Touvron et al. 2023, arXiv 2307.09288,
  appendix A.6, say of this test). A question of fewer than 13 words is marked by the exact test only.

Nothing is dropped: what is marked is counted, listed, and scored with and without. Imports no torch.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sdzero.questions.program_rows import statement_of
from sdzero.questions.programs import METADATA_KEY
from sdzero.questions.question import Question
from sdzero.questions.splits import normalise

WORDS = 13
MOST_QUESTIONS = 10
"""A run of words in more training questions than this is a common phrase."""


@dataclass(frozen=True)
class Match:
    """A benchmark's question that the recipe trains on. `how` is `exact` or `overlap`; `shared` is what both
    have in common: the text, or the first run of words. `training` is the training question's id."""

    question: str
    how: str
    set: str
    training: str
    shared: str

    def to_json(self) -> dict[str, Any]:
        """As a line of `suites/contamination/NAME.jsonl`."""
        return asdict(self)


class TrainingTexts:
    """The questions that a recipe trains on, made ready to be compared with one benchmark after the other."""

    def __init__(self, sets: Mapping[str, Sequence[Question]]) -> None:
        """`sets` are named as in a run: n1, n2, tuning."""
        self._questions = [(name, one.id, compared_text(one)) for name, own in sets.items() for one in own]
        self._words = [words_of(text) for _, _, text in self._questions]

    def __len__(self) -> int:
        return len(self._questions)

    def matches(self, questions: Sequence[Question]) -> list[Match]:
        """The questions that are trained on, in their order, at most one match of each."""
        texts = [compared_text(one) for one in questions]
        runs = [runs_of(words_of(text)) for text in texts]
        wanted = set(texts)
        same: dict[str, int] = {}
        holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        asked = {run for own in runs for run in own}
        for index, (_, _, text) in enumerate(self._questions):
            if text in wanted:
                same.setdefault(text, index)
            for run in set(runs_of(self._words[index])) & asked:
                holders[run].append(index)
        found = []
        for question, text, own in zip(questions, texts, runs, strict=True):
            if text in same:
                found.append(self._match(question, "exact", same[text], text))
                continue
            first = next((run for run in own if 0 < len(holders.get(run, ())) <= MOST_QUESTIONS), None)
            if first is not None:
                found.append(self._match(question, "overlap", holders[first][0], " ".join(first)))
        return found

    def _match(self, question: Question, how: str, index: int, shared: str) -> Match:
        name, training, _ = self._questions[index]
        return Match(question.id, how, name, training, shared)


def compared_text(question: Question) -> str:
    """A question's text as it is compared."""
    is_program = METADATA_KEY in question.metadata
    return normalise(statement_of(question.text) if is_program else question.text)


def words_of(text: str) -> list[str]:
    """Lower-case words between white space, without punctuation."""
    kept = "".join(c for c in text.casefold() if c.isalnum() or c.isspace())
    return kept.split()


def runs_of(words: Sequence[str]) -> list[tuple[str, ...]]:
    """All runs of 13 words, in order."""
    return [tuple(words[start : start + WORDS]) for start in range(len(words) - WORDS + 1)]
