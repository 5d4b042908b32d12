"""Look, write the recipe, and tell what was assumed."""

from dataclasses import dataclass
from pathlib import Path

from sdzero.errors import UserError
from sdzero.first_recipe.data_look import DataLook, look_at_data
from sdzero.first_recipe.model_look import ModelLook, look_at_model
from sdzero.first_recipe.recipe_text import chat_of, recipe_text
from sdzero.recipe_io import load_recipe

FEW_QUESTIONS = 200


@dataclass(frozen=True)
class FirstRecipe:
    """What was written, what was seen, and what a person should check."""

    file: Path
    seen: list[str]
    check: list[str]


def write_first_recipe(
    model_path: str, data_path: str, output: Path, question: str | None = None, answer: str | None = None
) -> FirstRecipe:
    """Write a recipe for this model and data into a new file.

    Raises UserError if the file is there already, and for a model or data that a run could not use.
    """
    if output.exists():
        raise UserError(
            "there is a file already, and it is not overwritten", str(output), "choose another --output"
        )
    if not output.parent.is_dir():
        raise UserError("there is no such folder", str(output.parent), "make it, or choose another --output")
    model = look_at_model(model_path)
    data = look_at_data(data_path, question, answer)
    text = recipe_text(model, data)
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(
            f"the recipe cannot be written ({error.strerror})", str(output), "choose another --output"
        ) from None
    load_recipe(output)
    return FirstRecipe(output, _seen(model, data), _check(model, data))


def _seen(model: ModelLook, data: DataLook) -> list[str]:
    context = "context not said" if model.context is None else f"context of {model.context:,} tokens"
    lines = [
        f"model: {model.architecture}, {model.size}, {model.dtype}, {context}",
        f"thinking: {model.thinking.kind}" + "".join(f"; {sign}" for sign in model.thinking.seen),
        f"data: {data.rows:,} rows, {len(data.questions):,} distinct questions, {data.duplicates:,}"
        f" duplicates, {data.conflicts:,} with two answers, {data.empty:,} rows that cannot be used",
    ]
    if data.fields is not None:
        lines += [f"{key}: {evidence}" for key, evidence in data.fields.evidence.items()]
    return [*lines, f"verifier: {data.verifier}; {data.evidence}"]


def _check(model: ModelLook, data: DataLook) -> list[str]:
    lines = list(data.remarks)
    instruction = chat_of(model, data).answer_instruction
    if instruction is not None:
        lines.append(f"each question is followed by: {instruction}")
    if model.thinking.kind != "none":
        lines.append("this is a thinking model: read docs/thinking.md before a long run")
    if not model.counts_tokens:
        lines.append("there is no tokenizer.json: lengths of prompts are estimated from their characters")
    if len(data.questions) < FEW_QUESTIONS:
        lines.append(f"{len(data.questions)} questions are few: expect intervals too wide to see an effect")
    if data.conflicts or data.empty:
        lines.append("data.faulty is `drop`: rows that cannot be used are left out; `error` refuses them")
    lines.append("learning rates and sizes are first guesses: compare on the tuning set before a long run")
    return lines
