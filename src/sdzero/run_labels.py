"""Label-free mode in a run: who sees which answers, the labels' own stage, and the true rewards beside.

From the moment that the questions are loaded, the training questions of such a run have no answer, no
metadata and no worked solution (`hide_references`); the stage `labels` gives them answers that the base
model's responses agree on. The true questions stay apart, in `RunContext.truth`, which only the figures for
people are made from.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from sdzero.errors import UserError
from sdzero.label_report import LABELS, label_lines, true_reward_lines, true_rewards_of
from sdzero.method.grading import together
from sdzero.method.labels import choose_labels, label_statistics, sample_texts, take_votes
from sdzero.method.true_rewards import rewards_of_files, rewards_of_traces
from sdzero.questions.question import Question
from sdzero.rollout.engine import Sampling
from sdzero.run_context import RunContext
from sdzero.verify.agreement import LabelledQuestion, agreement_grade, labelled, voter_of

Context = TypeVar("Context", bound=RunContext)


def hide_references(context: Context, stage: str = LABELS) -> Context:
    """The same run with training questions that tell nothing but their text and kind.

    Labels are those of `stage`, and are made when they are needed. Raises UserError if the verifier cannot
    vote.
    """
    recipe, sets = context.recipe, context.sets
    labels = recipe.labels.model_copy(update={"source": "majority"})
    hidden = replace(
        context,
        recipe=recipe.model_copy(update={"labels": labels}),
        sets=replace(sets, n1=[labelled(q, "") for q in sets.n1], n2=[labelled(q, "") for q in sets.n2]),
        grade=agreement_grade(voter_of(recipe.verifier.name), context.grade),
        truth={question.id: question for question in context.training_questions},
        label_stage=stage,
    )
    if context.run.is_done(stage):
        label_training_questions(hidden)
    return hidden


def label_training_questions(context: RunContext) -> None:
    """Give the training questions their labels, making them first if they are not there.

    Questions without a label leave the sets. Nothing is done in a run with references. Raises UserError if a
    set has no question left.
    """
    if not context.recipe.labels.is_majority or all(
        question.answer for question in context.training_questions
    ):
        return
    stage = context.label_stage
    if not context.run.is_done(stage):
        _make_labels(context)
    labels = {row["question"]: row["label"] for row in context.run.read_jsonl(f"{stage}/labels.jsonl")}
    kept: dict[str, list[Question]] = {}
    for name in ("n1", "n2"):
        own: list[Question] = getattr(context.sets, name)
        given = [_with_label(context, question, labels) for question in own]
        kept[name] = [question for question in given if question.answer]
        if own and not kept[name]:
            raise UserError(
                f"not one question of {name} has a label",
                str(context.run.path(f"{stage}/labels.jsonl")),
                "read its column `left_out`; lower labels.min_agreement, or raise labels.max_new_tokens, in a"
                " new folder",
            )
    context.sets = replace(context.sets, **kept)


def _with_label(
    context: RunContext, question: Question, labels: Mapping[str, str | None]
) -> LabelledQuestion:
    if question.id not in labels:
        raise UserError(
            f"there is no label of question {question.id}",
            str(context.run.path(f"{context.label_stage}/labels.jsonl")),
            "the data or the recipe changed under the run: start in a new folder",
        )
    return labelled(question, labels[question.id] or "")


def _make_labels(context: RunContext) -> None:
    recipe, run, stage = context.recipe, context.run, context.label_stage
    settings, like, voter = recipe.labels, recipe.collect, voter_of(recipe.verifier.name)
    questions = context.training_questions
    context.report(
        f"{stage}: {settings.samples} responses to each of {len(questions)} questions, then a vote"
    )

    def chosen(name: str) -> Any:
        own = getattr(settings, name)
        return getattr(like, name) if own is None else own

    texts = sample_texts(
        questions,
        settings.samples,
        Sampling(chosen("temperature"), chosen("max_new_tokens"), chosen("top_p")),
        context.sampler(context.load(recipe.model.path)),
        seed=recipe.seed,
        folder=f"{stage}/responses",
        stage=stage,
        batch_size=chosen("batch_size"),
        progress=context.progress,
    )
    votes = take_votes(questions, texts, voter.final_answer, together(context.grade))
    rows = choose_labels(votes, settings.min_agreement, together(context.grade))
    run.write_jsonl(f"{stage}/labels.jsonl", rows)
    statistics = label_statistics(rows, sum(vote.failed for vote in votes))
    statistics["without_answer"] = {
        name: sum(not context.truth[question.id].answer for question in getattr(context.sets, name))
        for name in ("n1", "n2")
    }
    # The winner's own response, graded as it would have been with the reference.
    winners = {vote.question.id: vote.winner.response for vote in votes if vote.winner is not None}
    statistics["right"] = _check_labels(context, rows, winners)
    run.write_json(f"{stage}/statistics.json", statistics)
    run.mark_done(stage, {key: statistics[key] for key in ("questions", "labelled", "agreement")})
    for line in label_lines(statistics):
        context.report(f"  {line}")


def _check_labels(
    context: RunContext, rows: Sequence[Mapping[str, Any]], responses: Mapping[str, str]
) -> dict[str, Any]:
    """Whether the labels are right, for the report: a line a question, and the figures.

    `share_of_unanimous` is of the labels that every response agrees on, the most that `min_agreement` can do.
    """
    asked = [row for row in rows if row["label"] is not None and context.truth[row["question"]].answer]
    items = [(context.truth[row["question"]], responses[row["question"]]) for row in asked]
    verdicts = together(context.grade)(items)
    checked = [
        {"question": row["question"], "label": row["label"], "outcome": str(verdict.outcome)}
        for row, verdict in zip(asked, verdicts, strict=True)
    ]
    context.run.write_jsonl(f"{context.label_stage}/checked.jsonl", checked)
    agreement: dict[int, list[float]] = {0: [], 1: []}
    for row, verdict in zip(asked, verdicts, strict=True):
        if verdict.counts:
            agreement[verdict.reward].append(row["agreement"])
    wrong, right = len(agreement[0]), len(agreement[1])
    unanimous = [reward for reward, own in agreement.items() for value in own if value == 1.0]
    return {
        "of": wrong + right,
        "share": right / (wrong + right) if wrong + right else None,
        "unanimous": len(unanimous),
        "share_of_unanimous": _mean(unanimous),
        "agreement_of_right": _mean(agreement[1]),
        "agreement_of_wrong": _mean(agreement[0]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# ---- the true rewards beside ----


def note_true_rewards(context: RunContext, stage: str) -> None:
    """Grade what a finished stage sampled with the true answers, and keep and report the figures.

    They stand in `LABELS/true_rewards.json`, under the stage's name. Nothing is done in a run with
    references, whose rewards are the true ones.
    """
    if not context.recipe.labels.is_majority:
        return
    run, truth, decode = context.run, context.truth, context.roles.decode
    grade = together(context.grade)
    groups = {"initial": "initial/*.jsonl", "revised": "revised/*.jsonl", "responses": "rollouts/*.jsonl"}
    found: dict[str, Any] = {}
    for group, pattern in groups.items():
        files = sorted(run.path(stage).glob(pattern))
        if files:
            found[group] = rewards_of_files(run, files, truth, grade, decode)
            if group == "responses":
                for name, part in _fifths(files).items():
                    found[name] = rewards_of_files(run, part, truth, grade, decode)
    if run.path(f"{stage}/traces.jsonl").exists():
        rows = run.read_jsonl(f"{stage}/traces.jsonl")
        found["traces"] = rewards_of_traces(rows, truth, grade, decode)
    file = f"{context.label_stage}/true_rewards.json"
    run.write_json(file, true_rewards_of(run, context.label_stage) | {stage: found})
    for line in true_reward_lines({stage: found}):
        context.report(f"  {line}")


def _fifths(files: Sequence[Path]) -> dict[str, Sequence[Path]]:
    """The first and the last fifth of the steps, of which a training has five or more."""
    fifth = len(files) // 5
    return {"first_fifth": files[:fifth], "last_fifth": files[-fifth:]} if fifth else {}
