"""Which question goes to which set: distinct by text, ranked by hash, kinds balanced, sets disjoint."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.recipe import BUILT_IN

if TYPE_CHECKING:
    from sdzero.recipe import DataSettings


@dataclass(frozen=True)
class QuestionSets:
    """The four sets of a run, no question in two of them: N1 (phase 1), N2 (phase 2), tuning, test."""

    n1: list[Question]
    n2: list[Question]
    tuning: list[Question]
    test: list[Question]


def normalise(text: str) -> str:
    """The form in which two question texts are compared: runs of whitespace are one space."""
    return " ".join(text.split())


def split_questions(questions: Sequence[Question], settings: "DataSettings") -> QuestionSets:
    """Cut the sets from one ranking of the distinct questions: test first, then tuning, n1, n2.

    The rank of a question is the hash of (`split_seed`, text), so it depends neither on the order of
    the data nor on how many questions there are. With several kinds, the ranking takes turns over the
    kinds (by name), and ends with what the larger kinds have left, so that each set is balanced as far
    as the kinds reach. Raises UserError if there are too few questions, or if a set overlaps another
    or, for the built-in questions, what the embedded model was pre-trained on.
    """
    ranked = rank_questions(questions, settings.split_seed)
    needed = settings.test + settings.tuning + settings.n1 + settings.n2
    if len(ranked) < needed:
        raise UserError(
            f"{needed} distinct questions are needed, but there are {len(ranked)}",
            where=f"data: test {settings.test}, tuning {settings.tuning}, n1 {settings.n1}, n2 {settings.n2}",
            todo="make the sets smaller, or bring more questions"
            + (" (a larger `pool`)" if settings.source == "reasoning_gym" else ""),
        )
    scored = settings.test + settings.tuning
    answered = [question for question in ranked if question.answer][:scored]
    if len(answered) < scored:
        raise UserError(
            f"test and tuning questions need an answer, and only {len(answered)} questions have one",
            where=f"data: test {settings.test}, tuning {settings.tuning}",
            todo="make the two sets smaller, or bring more questions with answers",
        )
    test, tuning = answered[: settings.test], answered[settings.test :]
    taken = {question.id for question in answered}
    rest = [question for question in ranked if question.id not in taken]
    n1, n2 = rest[: settings.n1], rest[settings.n1 : settings.n1 + settings.n2]
    sets = QuestionSets(n1=n1, n2=n2, tuning=tuning, test=test)
    pretraining = None
    if settings.source in BUILT_IN:
        from sdzero.tiny.problem import is_pretraining

        pretraining = is_pretraining
    named = {"test": sets.test, "tuning": sets.tuning, "n1": sets.n1, "n2": sets.n2}
    check_disjoint(named, pretraining)
    return sets


def rank_questions(questions: Iterable[Question], split_seed: int) -> list[Question]:
    """The distinct questions (the first of each text), in the order in which they are handed out."""
    kinds: dict[str, list[tuple[bytes, Question]]] = {}
    seen: set[str] = set()
    for question in questions:
        text = normalise(question.text)
        if text in seen:
            continue
        seen.add(text)
        rank = hashlib.sha256(f"{split_seed}\n{text}".encode("utf-8", "surrogatepass")).digest()
        kinds.setdefault(question.kind, []).append((rank, question))
    columns = [sorted(kinds[kind], key=lambda pair: pair[0]) for kind in sorted(kinds)]
    return [pair[1] for turn in zip_longest(*columns) for pair in turn if pair is not None]


def check_disjoint(
    sets: Mapping[str, Sequence[Question]], pretraining: Callable[[str], bool] | None = None
) -> None:
    """Raise UserError, with an example, if two sets share a question text, or a set holds one twice.

    `pretraining` tells of a text whether the model was pre-trained on it; no set may hold such a text.
    """
    owner: dict[str, str] = {}
    for name, questions in sets.items():
        for question in questions:
            text = normalise(question.text)
            if text in owner:
                raise UserError(
                    f"the sets `{owner[text]}` and `{name}` share a question: {_shorten(text)}"
                    if owner[text] != name
                    else f"the set `{name}` holds a question twice: {_shorten(text)}",
                    where=f"question {question.id}",
                    todo="keep each question text in one set only",
                )
            owner[text] = name
            if pretraining is not None and pretraining(question.text):
                raise UserError(
                    f"the set `{name}` holds a question that the model was pre-trained on: {_shorten(text)}",
                    where=f"question {question.id}",
                    todo="take questions from the post-training side only",
                )


def question_to_json(question: Question) -> dict[str, Any]:
    """A question as JSON-like data, with a copy of its metadata; `question_from_json` is the way back."""
    return {
        "id": question.id,
        "text": question.text,
        "answer": question.answer,
        "kind": question.kind,
        "metadata": dict(question.metadata),
        "solution": question.solution,
    }


def question_from_json(data: Mapping[str, Any]) -> Question:
    """The question that `question_to_json` wrote. Raises KeyError or TypeError for other data."""
    return Question(**{key: data[key] for key in ("id", "text", "answer", "kind", "metadata", "solution")})


def _shorten(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
