"""`sdzero localize`: what the report shows of tokens, measured with the run's models and kept in its folder.

The student and the Reviser are those with which phase 2 begins: both the SRT model, or `distill.teacher` as
the Reviser. The responses are the SRT model's own to the questions that were evaluated (there are several to
a question, so that a wrong one can be seen beside a right one); without an evaluation they are those of
phase 2, the earliest first. Over-long sequences are left out, and counted.

Leaves in the run: `report/tokens.jsonl`, a line a response; `report/vocabulary.json`, the text of each token
that stands in it; `report/localization.json`, the shares of `sdzero.analyze.localization` over these
responses; `report/style.json`, how the responses of phase 2 read, step by step.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from sdzero.analyze.alternatives import Alternatives, token_alternatives
from sdzero.analyze.localization import Localized, localization, token_divergences
from sdzero.analyze.pieces import pieces
from sdzero.analyze.style import style
from sdzero.errors import UserError
from sdzero.kept_models import check_kept_model
from sdzero.method.objectives import phrase_reward
from sdzero.method.roles import DistillationPair, Roles
from sdzero.models import load_model, load_tokenizer, resolve_path
from sdzero.offline import kept_in
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.recipe import Recipe
from sdzero.run_context import Report
from sdzero.run_dir import RunDir, recipe_of_run
from sdzero.verify.verdict import Outcome, Verdict

TOKENS = "report/tokens.jsonl"
VOCABULARY = "report/vocabulary.json"
LOCALIZATION = "report/localization.json"
STYLE = "report/style.json"
BATCH = 8
"""Responses that go through the models at one time."""
DIGITS = 5
"""Decimal places of what is kept: nats and probabilities are shown with three."""
STYLE_POINTS = 100
"""Most points of the curves of style: steps are put together beyond it."""

Row = dict[str, Any]


def localize(folder: Path, responses: int | None, report: Report) -> int:
    """Measure `responses` of each verdict (None: as many as the recipe says); gives how many it were.

    What was measured before is replaced. Raises UserError for a folder that is no run, or has no SRT model or
    no responses yet, or whose SRT model was damaged.
    """
    recipe, run = recipe_of_run(folder), RunDir.unlocked(folder)
    with kept_in(recipe):
        return _measure(recipe, run, responses or recipe.report.responses, report)


def _measure(recipe: Recipe, run: RunDir, wanted: int, report: Report) -> int:
    tokenizer = load_tokenizer(recipe.model.path)
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    questions = {q.id: q for q in load_questions(recipe.data, empty_answers=recipe.labels.is_majority)}
    named_start = _srt_folder(recipe, run)
    start = resolve_path(named_start)
    chosen, overlong = choose(
        _candidates(run), wanted, lambda row: _pair(row, questions, roles, recipe), recipe.distill.max_context
    )
    if not chosen:
        raise UserError(
            "the run has no responses of its SRT model yet", str(run.root), "run `sdzero evaluate` first"
        )
    report(f"localize: {len(chosen)} responses, student and Reviser of {start}")
    check_kept_model(run, named_start)
    model = load_model(start, recipe.model)
    named = resolve_path(recipe.distill.teacher) if recipe.distill.teacher else start
    teacher = model if named == start else load_model(named, recipe.model)
    pairs = [pair for _, pair in chosen]
    chunk = recipe.distill.chunk_tokens
    divergences = token_divergences(model, teacher, pairs, recipe.distill.divergence, chunk, BATCH)
    alternatives = token_alternatives(model, teacher, pairs, recipe.report.alternatives, chunk)
    kept = [
        _kept(row, questions[row["question"]], own, views, roles, recipe)
        for (row, _), own, views in zip(chosen, divergences, alternatives, strict=True)
    ]
    run.write_json(VOCABULARY, vocabulary(kept, tokenizer))
    run.write_json(
        LOCALIZATION,
        {
            "student": start,
            "reviser": named,
            "divergence": recipe.distill.divergence,
            "overlong": overlong,
            **localization(
                [
                    Localized.of(row["question"], row["reward"], own, row["token_ids"], roles.end_token_id)
                    for row, own in zip(kept, divergences, strict=True)
                ]
            ),
        },
    )
    run.write_json(STYLE, style_by_step(run, roles))
    run.write_jsonl(TOKENS, kept)
    return len(kept)


def _srt_folder(recipe: Recipe, run: RunDir) -> str:
    if recipe.srt.checkpoint:
        return recipe.srt.checkpoint
    folder = run.path(f"srt/round-{recipe.collect.rounds}/model")
    if not folder.exists():
        raise UserError("the run has no SRT model yet", str(folder), "run `sdzero srt` first")
    return str(folder)


def _candidates(run: RunDir) -> Iterator[Row]:
    """Graded responses with their `source`, in a fixed order."""
    files = sorted(run.root.glob("evaluate/srt/responses/batch-*.jsonl"))
    for file in files or sorted(run.root.glob("distill/rollouts/step-*.jsonl")):
        source = str(file.relative_to(run.root))
        for row in run.read_jsonl(source):
            yield {**row, "source": source}


def _pair(row: Row, questions: dict[str, Question], roles: Roles, recipe: Recipe) -> DistillationPair:
    prompt = roles.generator_prompt(questions[row["question"]])
    reward = phrase_reward(_reward(row), recipe.distill.phrase_for_reward)
    return roles.distillation_pair(prompt, row["token_ids"], reward)


def _reward(row: Row) -> int:
    return Verdict(Outcome(row["outcome"])).reward


def choose(
    rows: Iterable[Row],
    wanted: int,
    pair_of: Callable[[Row], DistillationPair],
    limit: int | None,
) -> tuple[list[tuple[Row, DistillationPair]], int]:
    """`wanted` responses of each verdict with their pairs, and how many over-long ones were passed over.

    Questions that have both a wrong and a right response come first, one of each; then other questions, one
    response each; each in the order of the rows. Responses that nobody could grade are left out.
    """
    graded = [row for row in rows if Verdict(Outcome(row["outcome"])).counts and row["token_ids"]]
    verdicts: dict[str, set[int]] = {}
    for row in graded:
        verdicts.setdefault(row["question"], set()).add(_reward(row))
    chosen: list[tuple[Row, DistillationPair]] = []
    overlong = 0
    taken: set[tuple[str, int]] = set()
    of_outcome: dict[str, int] = {}
    for has_both in (True, False):
        for row in graded:
            key = (row["question"], _reward(row))
            is_full = of_outcome.get(row["outcome"], 0) >= wanted
            if (len(verdicts[row["question"]]) == 2) != has_both or key in taken or is_full:
                continue
            pair = pair_of(row)
            if limit is not None and pair.context_tokens > limit:
                overlong += 1
                continue
            taken.add(key)
            of_outcome[row["outcome"]] = of_outcome.get(row["outcome"], 0) + 1
            chosen.append((row, pair))
    return chosen, overlong


def _kept(
    row: Row,
    question: Question,
    divergences: Sequence[float],
    views: tuple[Alternatives, Alternatives],
    roles: Roles,
    recipe: Recipe,
) -> Row:
    reward = _reward(row)
    shown = phrase_reward(reward, recipe.distill.phrase_for_reward)

    def view(one: Alternatives) -> dict[str, Any]:
        return {
            "ids": one.ids,
            "probabilities": [[round(p, DIGITS) for p in own] for own in one.probabilities],
            "target": [round(p, DIGITS) for p in one.target],
        }

    return {
        "question": question.id,
        "text": question.text,
        "index": row["index"],
        "source": row["source"],
        "outcome": row["outcome"],
        "reward": reward,
        "phrase": recipe.phrases.correct if shown else recipe.phrases.wrong,
        "token_ids": row["token_ids"],
        "pieces": pieces(row["token_ids"], lambda ids: roles.decode(ids, special=True)),
        "divergence": [round(value, DIGITS) for value in divergences],
        "student": view(views[0]),
        "reviser": view(views[1]),
    }


def vocabulary(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """The text of every token among the alternatives, by its id; JSON has text keys."""
    ids = {
        token for row in rows for role in ("student", "reviser") for own in row[role]["ids"] for token in own
    }
    return {str(token): str(tokenizer.decode([token])) for token in sorted(ids)}


def style_by_step(run: RunDir, roles: Roles) -> list[dict[str, float]]:
    """How the responses of phase 2 read, step by step: hedges and talk of revision per 1,000 tokens."""
    files = sorted(run.root.glob("distill/rollouts/step-*.jsonl"))
    size = max(1, -(-len(files) // STYLE_POINTS))
    found = []
    for start in range(0, len(files), size):
        rows = [
            row
            for file in files[start : start + size]
            for row in run.read_jsonl(str(file.relative_to(run.root)))
        ]
        if not rows:
            continue
        own = style([roles.decode(row["token_ids"]) for row in rows], [len(row["token_ids"]) for row in rows])
        found.append(
            {
                "step": start + 1,
                "hedges": own["hedges"]["per_1000_tokens"],
                "revisions": own["revisions"]["per_1000_tokens"],
            }
        )
    return found
