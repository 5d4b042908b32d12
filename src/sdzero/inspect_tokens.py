"""`sdzero inspect RUN --question ID`: one question's responses, token by token, in the terminal.

The same as the report's token view: tokens shaded by the divergence between student and Reviser, what both
would have written at the most divergent ones, and the masks of the losses. Needs `sdzero localize` before.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sdzero.errors import UserError
from sdzero.harmless import harmless
from sdzero.inspection import print_pair, print_sequence
from sdzero.localize import TOKENS, VOCABULARY
from sdzero.method.objectives import phrase_reward
from sdzero.method.roles import Roles
from sdzero.method.srt import srt_rows
from sdzero.method.trace import RevisionTrace
from sdzero.models import load_tokenizer
from sdzero.offline import kept_in
from sdzero.questions.sources import load_questions
from sdzero.run_dir import RunDir, recipe_of_run

SHADES = ((2.0, "white on red3"), (1.0, "black on dark_orange"), (0.3, "black on gold3"), (0.05, "yellow"))
"""From how many nats on which style; the page shades up to 2 nats as well."""
PEAKS = 10
"""Tokens whose alternatives are shown: the most divergent ones."""


def shade(nats: float) -> str:
    """The style of a token of this divergence; an empty one for next to none."""
    return next((style for least, style in SHADES if nats >= least), "")


def measured_of(run: RunDir, question: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """What `localize` measured of a question, and the vocabulary of its token ids. Raises UserError if that
    is nothing."""
    folder = run.root
    if not run.path(TOKENS).is_file():
        raise UserError(
            "the run's tokens were not measured", str(folder), f"run `sdzero localize {folder}` first"
        )
    measured = run.read_jsonl(TOKENS)
    rows = [row for row in measured if row["question"] == question]
    if not rows:
        known = ", ".join(dict.fromkeys(harmless(row["question"]) for row in measured))
        raise UserError(
            f"nothing was measured of question `{harmless(question)}`",
            str(run.path(TOKENS)),
            f"measured are: {known}; or measure more with `sdzero localize {folder} --responses N`",
        )
    return rows, run.read_json(VOCABULARY)


def question_as_json(folder: Path, question: str) -> dict[str, Any]:
    """The same for a script. Raises UserError if nothing was measured, or the folder is no run."""
    recipe_of_run(folder)
    rows, vocabulary = measured_of(RunDir.unlocked(folder), question)
    return {"responses": rows, "vocabulary": vocabulary}


def inspect_question(folder: Path, question: str, console: Console) -> None:
    """Print all that was measured of a question, and its loss masks. Raises UserError if that is nothing."""
    recipe, run = recipe_of_run(folder), RunDir.unlocked(folder)
    rows, vocabulary = measured_of(run, question)
    with kept_in(recipe):
        tokenizer = load_tokenizer(recipe.model.path)
        questions = load_questions(recipe.data, empty_answers=recipe.labels.is_majority)
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    prompt = roles.generator_prompt(next(one for one in questions if one.id == question))
    for row in rows:
        print_response(row, vocabulary, console)
        reward = phrase_reward(row["reward"], recipe.distill.phrase_for_reward)
        console.print("[bold]loss mask of phase 2[/bold]")
        print_pair(roles.distillation_pair(prompt, row["token_ids"], reward), tokenizer, console)
    for file in sorted(folder.glob("collect/round-*/traces.jsonl")):
        traces = [RevisionTrace.from_json(row) for row in run.read_jsonl(str(file.relative_to(folder)))]
        own = [trace for trace in traces if trace.question_id == question]
        for stage, sequences in enumerate(srt_rows(own, roles, recipe.srt) if own else []):
            for sequence in sequences:
                console.print(f"[bold]loss mask of SRT, {file.parent.name}, stage {stage + 1}[/bold]")
                print_sequence(sequence, tokenizer, console)


def print_response(row: dict[str, Any], vocabulary: dict[str, str], console: Console) -> None:
    """One response: its verdict, its shaded tokens, the control phrase, the alternatives at its peaks."""
    title = Text(f"{harmless(row['question'])}: {row['outcome']}", style="bold")
    title.append(f", {sum(row['divergence']):.2f} nats in {len(row['divergence'])} tokens", style="dim")
    console.print(title)
    console.print(Text(harmless(row["text"]), style="dim"))
    console.print(shaded(row))
    console.print(Text(f"control phrase: {harmless(row['phrase'])}", style="italic"))
    console.print(alternatives_table(row, vocabulary))


def shaded(row: dict[str, Any]) -> Text:
    """The response's tokens, each in the style of its divergence."""
    text = Text()
    for piece, nats in zip(row["pieces"], row["divergence"], strict=True):
        text.append(harmless(piece), style=Style.parse(shade(nats)) if shade(nats) else None)
    return text


def alternatives_table(row: dict[str, Any], vocabulary: dict[str, str]) -> Table:
    """The most divergent tokens in the order of the response, with what both roles would have written."""
    table = Table()
    table.add_column("token")
    table.add_column("nats", justify="right")
    table.add_column("student")
    table.add_column("Reviser")
    order = sorted(range(len(row["divergence"])), key=lambda place: -row["divergence"][place])[:PEAKS]
    for place in sorted(order):
        cells = [
            ", ".join(
                f"{harmless(vocabulary[str(token)])!r} {probability:.1%}"
                for token, probability in zip(
                    row[role]["ids"][place], row[role]["probabilities"][place], strict=True
                )
                if probability >= 0.001
            )
            for role in ("student", "reviser")
        ]
        named = f"{place + 1} {harmless(row['pieces'][place])!r}"
        # As texts: a table reads square brackets in plain strings as markup.
        table.add_row(Text(named), Text(f"{row['divergence'][place]:.3f}"), *map(Text, cells))
    return table
