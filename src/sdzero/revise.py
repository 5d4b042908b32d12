"""`sdzero revise`: one model in both roles on a few questions, to be read by a person.

The Generator answers, the verifier grades where there is a reference, and the Reviser goes on after the
control phrase of that reward. Without a reference there is no reward, and both phrases are tried.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from sdzero.engines import open_engines
from sdzero.errors import UserError
from sdzero.method.grading import Grade
from sdzero.method.roles import Roles
from sdzero.models import load_model, load_tokenizer
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import split_questions
from sdzero.recipe import Recipe
from sdzero.rollout.engine import Request, RolloutEngine, Sampling, seed_of
from sdzero.verify.pool import pool_of
from sdzero.verify.verdict import Outcome, Verdict


@dataclass(frozen=True)
class Attempt:
    """A response with its verdict; `verdict` and `reward` are None where there is no reference."""

    text: str
    tokens: int
    verdict: str | None
    reward: int | None
    detail: str = ""


@dataclass(frozen=True)
class Revised:
    """A revision and the control phrase that it follows."""

    phrase_reward: int
    control_phrase: str
    attempt: Attempt


@dataclass(frozen=True)
class Revision:
    """All that was done for one question. Without a reference there is a revision for each phrase."""

    question: str
    reference: str | None
    initial: Attempt
    revised: tuple[Revised, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-like, for a line of `--json`."""
        return {"schema": 1, **asdict(self)}


def plain_recipe(model: str, max_new_tokens: int) -> Recipe:
    """The settings of `sdzero revise` without a recipe: the paper's phrases and temperature."""
    rate = {"learning_rate": 1e-5}
    return Recipe.model_validate(
        {
            "name": "revise",
            "model": {"path": model},
            "data": {"source": "arithmetic", "n1": 1, "n2": 1, "test": 1},
            "collect": {"max_new_tokens": max_new_tokens},
            "srt": rate,
            "distill": {**rate, "max_new_tokens": max_new_tokens},
            "rft": rate,
            "evaluate": {"max_new_tokens": max_new_tokens},
        }
    )


def questions_of(recipe: Recipe, count: int) -> list[Question]:
    """The first of the recipe's test questions. Raises UserError if there are none."""
    questions = split_questions(load_questions(recipe.data), recipe.data).test[:count]
    if not questions:
        raise UserError("there are no test questions", "data.test", "set data.test to 1 or more")
    return questions


def questions_of_file(recipe: Recipe, file: Path, count: int) -> list[Question]:
    """The first questions of a JSONL file, with the recipe's columns; answers may be missing."""
    data = recipe.data.model_copy(
        update={"source": "jsonl", "path": str(file), "tasks": [], "task_arguments": {}, "subset": None}
    )
    return load_questions(data, empty_answers=True)[:count]


class Reviser:
    """A model that is loaded once and asked about questions, in batches."""

    def __init__(self, engine: RolloutEngine, roles: Roles, recipe: Recipe, grade: Grade | None) -> None:
        self._engine, self._roles, self._recipe, self._grade = engine, roles, recipe, grade
        own = recipe.evaluate
        self._sampling = Sampling(own.temperature, own.max_new_tokens, own.top_p)
        self._phrases = (recipe.phrases.wrong, recipe.phrases.correct)

    def revise(self, questions: Sequence[Question], seed: int) -> list[Revision]:
        """Answer, grade and revise.

        A response that the length limit cut has the reward 0, as everywhere. Raises UserError for a question
        that does not fit the context.
        """
        prompts = [tuple(self._roles.generator_prompt(question)) for question in questions]
        requests = [
            Request(prompt, seed_of(seed, "revise", "initial", question.id))
            for prompt, question in zip(prompts, questions, strict=True)
        ]
        responses = self._engine.generate(requests, self._sampling)
        attempts = self._graded(questions, [(r.token_ids, r.stop_reason) for r in responses])
        places: list[tuple[int, int]] = []
        further = []
        for place, (question, attempt) in enumerate(zip(questions, attempts, strict=True)):
            for reward in (0, 1) if attempt.reward is None else (attempt.reward,):
                prompt = self._roles.reviser_prompt(prompts[place], responses[place].token_ids, reward)
                seed_here = seed_of(seed, "revise", "revised", question.id, reward)
                further.append(Request(tuple(prompt), seed_here))
                places.append((place, reward))
        again = self._engine.generate(further, self._sampling)
        asked = [questions[place] for place, _ in places]
        graded = self._graded(asked, [(r.token_ids, r.stop_reason) for r in again])
        found: list[list[Revised]] = [[] for _ in questions]
        for (place, reward), attempt in zip(places, graded, strict=True):
            found[place].append(Revised(reward, self._phrases[reward], attempt))
        return [
            Revision(question.text, question.answer or None, attempt, tuple(revised))
            for question, attempt, revised in zip(questions, attempts, found, strict=True)
        ]

    def _graded(
        self, questions: Sequence[Question], responses: Sequence[tuple[tuple[int, ...], str]]
    ) -> list[Attempt]:
        texts = [self._roles.decode(ids) for ids, _ in responses]
        to_grade = [
            place
            for place, (question, (_, stop)) in enumerate(zip(questions, responses, strict=True))
            if question.answer and stop == "end" and self._grade is not None
        ]
        verdicts: dict[int, Verdict] = {}
        if self._grade is not None and to_grade:
            items = [(questions[place], texts[place]) for place in to_grade]
            verdicts = dict(zip(to_grade, self._grade(items), strict=True))
        attempts = []
        for place, (ids, stop) in enumerate(responses):
            verdict = verdicts.get(place)
            if stop == "length" and questions[place].answer:
                verdict = Verdict(Outcome.TRUNCATED)
            counts = verdict is not None and verdict.counts
            attempts.append(
                Attempt(
                    text=texts[place],
                    tokens=len(ids),
                    verdict=None if verdict is None else str(verdict.outcome),
                    reward=verdict.reward if verdict is not None and counts else None,
                    detail="" if verdict is None else verdict.detail,
                )
            )
        return attempts


def revise(
    recipe: Recipe,
    questions: Sequence[Question],
    *,
    seed: int,
    folder: Path,
    report: Callable[[str], None],
    progress: Callable[[str, int, int], None],
) -> Iterator[Revision]:
    """The recipe's model on the questions, a batch of the rollout engine at a time.

    `folder` is for the engine's files. Raises UserError for a model that cannot be loaded, a verifier that
    fails its canaries, a question that does not fit.
    """
    tokenizer = load_tokenizer(recipe.model.path)
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    model: PreTrainedModel = load_model(recipe.model.path, recipe.model)
    has_reference = any(question.answer for question in questions)
    size = recipe.rollout.batch_size
    with open_engines(recipe, tokenizer, folder, report) as make_engine:
        engine = make_engine(model, roles)
        with pool_of(recipe.verifier) if has_reference else nullcontext() as pool:
            if pool is not None:
                pool.check_canaries()
            reviser = Reviser(engine, roles, recipe, None if pool is None else pool.grade)
            for start in range(0, len(questions), size):
                yield from reviser.revise(questions[start : start + size], seed)
                progress("revise", min(start + size, len(questions)), len(questions))
