"""What `sdzero revise` is asked for, and how it shows what a model did."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sdzero.errors import UserError
from sdzero.offline import kept_in, load_recipe
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.revise import Attempt, Revision, plain_recipe, questions_of, questions_of_file, revise

MAX_NEW_TOKENS = 128
"""Without a recipe: short enough for an embedded model's context."""
VERDICT_STYLES = {"correct": "green", None: "dim"}


def recipe_for(model: str, recipe: Path | None, max_new_tokens: int | None) -> Recipe:
    """The recipe's settings, or the usual ones, with this model."""
    if recipe is None:
        return plain_recipe(model, max_new_tokens or MAX_NEW_TOKENS)
    changes = [f"model.path={model}"]
    if max_new_tokens is not None:
        changes.append(f"evaluate.max_new_tokens={max_new_tokens}")
    return load_recipe(recipe, changes)


def asked_questions(
    settings: Recipe,
    recipe: Path | None,
    question: str | None,
    answer: str | None,
    data: Path | None,
    count: int,
) -> list[Question]:
    """The questions that the options stand for. Raises UserError for options that do not go together."""
    if question is not None and data is not None:
        raise UserError("there are two sources of questions", "--question, --data", "give one of the two")
    if answer is not None and question is None:
        raise UserError("an answer belongs to a question", "--answer", "give --question too")
    if question is not None:
        if not question.strip():
            raise UserError("the question is empty", "--question", "write one")
        return [Question("question", question, (answer or "").strip())]
    if data is not None:
        return questions_of_file(settings, data, count)
    if recipe is not None:
        return questions_of(settings, count)
    raise UserError(
        "there is nothing to ask", "--question, --data, --recipe", 'give --question "What is 2 + 3?"'
    )


def revise_and_show(
    model: str,
    recipe: Path | None,
    *,
    question: str | None,
    answer: str | None,
    data: Path | None,
    count: int,
    max_new_tokens: int | None,
    seed: int,
    folder: Path,
    report: Callable[[str], None],
    progress: Callable[[str, int, int], None],
    console: Console,
    as_line: Callable[[Any], None] | None,
) -> None:
    """Do it, and print each question as it is done; with `as_line` hand over JSON-like values in place."""
    settings = recipe_for(model, recipe, max_new_tokens)
    with kept_in(settings):
        questions = asked_questions(settings, recipe, question, answer, data, count)
        done = revise(settings, questions, seed=seed, folder=folder, report=report, progress=progress)
        for number, revision in enumerate(done, 1):
            if as_line is not None:
                as_line(revision.to_json())
            else:
                show(revision, number, len(questions), console)


def show(revision: Revision, number: int, total: int, console: Console) -> None:
    """One question for a person to read."""
    console.print(Text(f"question {number} of {total}: {revision.question}", "bold"))
    if revision.reference is not None:
        console.print(Text(f"reference: {revision.reference}", "dim"))
    _show_attempt("initial response", revision.initial, console)
    for one in revision.revised:
        console.print(Text(f"control phrase (r = {one.phrase_reward}): {one.control_phrase}", "yellow"))
        _show_attempt("revised response", one.attempt, console)
    console.print()


def _show_attempt(name: str, attempt: Attempt, console: Console) -> None:
    verdict = attempt.verdict or "no reference, so no verdict"
    detail = f" ({attempt.detail})" if attempt.detail else ""
    style = VERDICT_STYLES.get(attempt.verdict, "red")
    console.print(Text.assemble(f"{name}, {attempt.tokens} tokens: ", (f"{verdict}{detail}", style)))
    console.print(Text(f"  {attempt.text.strip()}"))
