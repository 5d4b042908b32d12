"""Label-free training: the answer that most of the model's own responses agree on stands for the reference.

Source: TTRL (arXiv 2504.16084), which takes the majority as the label and rewards agreement with it. Here it
is a stage before phase 1: everything after it, rewards, revisions and phase 2, uses the labels as it would
use references. What the data has for answers is read in two places only: beside the labels, to say how many
are right, and in `true_rewards`, to say what the true reward of the same responses was.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

from sdzero.errors import UserError
from sdzero.method.graded import GradedSampler
from sdzero.method.grading import Grade
from sdzero.method.roles import Roles
from sdzero.questions.question import Question
from sdzero.questions.splits import QuestionSets
from sdzero.recipe import CollectSettings
from sdzero.recipe_labels import LabelSettings
from sdzero.rollout.engine import Request, Sampling, seed_of, streamed
from sdzero.run_dir import RunDir
from sdzero.verify.boxed import last_boxed
from sdzero.verify.math import as_integer
from sdzero.verify.verdict import Outcome, Verdict

STAGE = "labels"
"""The stage's folder, and its name in the ledger."""
LABELS = f"{STAGE}/labels.jsonl"
LONGEST_ANSWER = 1000
"""Characters; a longer content of a box is no answer."""


def rewarded(collect: str = "collect", distill: str = "distill") -> dict[str, str]:
    """Which responses the labels rewarded, and where stages of these names keep them."""
    return {
        "initial": f"{collect}/round-*/initial/*.jsonl",
        "revised": f"{collect}/round-*/revised/*.jsonl",
        "phase 2": f"{distill}/rollouts/*.jsonl",
    }


@dataclass(frozen=True)
class Label:
    """What the responses to a question agree on: `answer` (None if none had one), and the share of all
    samples that gave it. `votes` are the groups of equal answers, largest first."""

    question: str
    answer: str | None
    agreement: float
    votes: Mapping[str, int]


def majority(question: str, votes: Sequence[str | None], same: Callable[[str, str], bool]) -> Label:
    """The largest group of equal answers; of equally large ones, the one that was begun first.

    None is a response without an answer: it votes for nothing, but counts in the agreement. `same` decides
    whether an answer belongs to a group, by the group's first answer.
    """
    groups: dict[str, int] = {}
    of: dict[str, str] = {}
    for vote in votes:
        if vote is None:
            continue
        if vote not in of:
            of[vote] = next((first for first in groups if same(first, vote)), vote)
        groups[of[vote]] = groups.get(of[vote], 0) + 1
    if not groups:
        return Label(question, None, 0.0, {})
    ordered = sorted(groups.items(), key=lambda item: -item[1])  # stable: the first begun stays first
    answer, size = ordered[0]
    return Label(question, answer, size / len(votes), dict(ordered))


def same_by(grade: Grade) -> Callable[[str, str], bool]:
    """Whether two answers are the same to the verifier; integers are compared without it."""

    def same(first: str, second: str) -> bool:
        whole = as_integer(first), as_integer(second)
        if None not in whole:
            return whole[0] == whole[1]
        (verdict,) = grade([(Question("vote", "", first), f"\\boxed{{{second}}}")])
        return verdict.outcome is Outcome.CORRECT

    return same


def vote_of(text: str) -> str | None:
    """The answer that a finished response gives: the content of its last box."""
    answer = last_boxed(text)
    return answer if answer and len(answer) <= LONGEST_ANSWER else None


def sample_votes(
    questions: Sequence[Question],
    sampler: GradedSampler,
    samples: int,
    settings: CollectSettings,
    seed: int,
) -> dict[str, list[str | None]]:
    """`samples` votes on each question, by its id. Finished batches are kept under `labels/votes`.

    A response that the length limit cut has no vote. Nothing is graded.
    """
    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.top_p)
    prompts = [(question, tuple(sampler.roles.generator_prompt(question))) for question in questions]
    sampler.check_fits(prompts, settings.max_new_tokens)
    wanted = [
        (question, index, Request(prompt_ids, seed_of(seed, STAGE, question.id, index)))
        for question, prompt_ids in prompts
        for index in range(samples)
    ]
    votes: dict[str, list[str | None]] = {question.id: [] for question in questions}
    for start in range(0, len(wanted), settings.batch_size):
        batch = wanted[start : start + settings.batch_size]
        name = f"{STAGE}/votes/batch-{start // settings.batch_size:05d}.jsonl"
        if not sampler.run.path(name).exists():
            _sample_batch(sampler, batch, sampling, name)
        rows = sampler.run.read_jsonl(name)
        if [(row["question"], row["index"]) for row in rows] != [(q.id, index) for q, index, _ in batch]:
            raise UserError(
                "a stored batch of votes is on other questions than this run asks",
                str(sampler.run.path(name)),
                "the data or the recipe changed under the run: start in a new folder",
            )
        for row in rows:
            votes[row["question"]].append(row["answer"])
        sampler.show_progress(STAGE, min(start + settings.batch_size, len(wanted)), len(wanted))
    return votes


def _sample_batch(
    sampler: GradedSampler,
    batch: Sequence[tuple[Question, int, Request]],
    sampling: Sampling,
    name: str,
) -> None:
    started = time.monotonic()
    rows: list[dict[str, Any]] = [{} for _ in batch]
    for group in streamed(sampler.engine, [request for _, _, request in batch], sampling):
        for place, response in group:
            question, index, _ = batch[place]
            ended = response.stop_reason == "end"
            rows[place] = {
                "question": question.id,
                "index": index,
                "answer": vote_of(sampler.roles.decode(response.token_ids)) if ended else None,
                "token_ids": list(response.token_ids),
            }
    # Counted before it is kept, as every batch is (see `GradedSampler.batch`).
    sampler.ledger.record(
        STAGE,
        name,
        responses=len(rows),
        sampled_tokens=sum(len(row["token_ids"]) for row in rows),
        seconds=time.monotonic() - started,
    )
    sampler.run.write_jsonl(name, rows)


def label_questions(
    questions: Sequence[Question],
    sampler: GradedSampler,
    grade: Grade,
    settings: LabelSettings,
    collect: CollectSettings,
    seed: int,
) -> dict[str, Any]:
    """Sample, vote and write `labels/labels.jsonl`; returns what is reported of it."""
    votes = sample_votes(questions, sampler, settings.samples, collect, seed)
    same = same_by(grade)
    labels = [majority(question.id, votes[question.id], same) for question in questions]
    verdicts = _verdicts_of(questions, labels, grade)
    rows = [
        {
            "question": label.question,
            "answer": label.answer,
            "agreement": label.agreement,
            "votes": dict(label.votes),
            # For the report alone; null where the data has no answer, or the label is none.
            "right": None if verdict is None else verdict.outcome is Outcome.CORRECT,
        }
        for label, verdict in zip(labels, verdicts, strict=True)
    ]
    sampler.run.write_jsonl(LABELS, rows)
    return statistics(rows, settings)


def _verdicts_of(
    questions: Sequence[Question], labels: Sequence[Label], grade: Grade
) -> list[Verdict | None]:
    """What the data's answers say of the labels."""
    known = [
        (place, question, label.answer)
        for place, (question, label) in enumerate(zip(questions, labels, strict=True))
        if question.answer and label.answer is not None
    ]
    verdicts: list[Verdict | None] = [None] * len(questions)
    graded = grade([(question, f"\\boxed{{{answer}}}") for _, question, answer in known])
    for (place, _, _), verdict in zip(known, graded, strict=True):
        verdicts[place] = verdict if verdict.counts else None
    return verdicts


def statistics(rows: Sequence[Mapping[str, Any]], settings: LabelSettings) -> dict[str, Any]:
    """How many questions have a label that training uses; of those that can be judged, the share right."""
    used = [row for row in rows if _is_used(row, settings)]
    judged = [row["right"] for row in used if row["right"] is not None]
    return {
        "questions": len(rows),
        "used": len(used),
        "mean_agreement": sum(row["agreement"] for row in used) / max(len(used), 1),
        "judged": len(judged),
        "right": sum(judged) / len(judged) if judged else None,
    }


def _is_used(row: Mapping[str, Any], settings: LabelSettings) -> bool:
    return row["answer"] is not None and row["agreement"] >= settings.min_agreement


def labelled_sets(sets: QuestionSets, run: RunDir, settings: LabelSettings) -> QuestionSets:
    """N1 and N2 with labels in place of answers and without worked solutions, less what has no label.

    Raises UserError if one of the two has nothing left.
    """
    answers = {row["question"]: row["answer"] for row in run.read_jsonl(LABELS) if _is_used(row, settings)}

    def labelled(questions: Sequence[Question], name: str) -> list[Question]:
        found = [replace(q, answer=answers[q.id], solution="") for q in questions if q.id in answers]
        if not found:
            raise UserError(
                f"no question of {name} has a label: too few responses give an answer, or agree on one",
                str(run.path(LABELS)),
                "look at the votes there; lower labels.min_agreement, or raise collect.max_new_tokens",
            )
        return found

    return replace(sets, n1=labelled(sets.n1, "n1"), n2=labelled(sets.n2, "n2"))


def true_rewards(
    run: RunDir,
    roles: Roles,
    grade: Grade,
    questions: Mapping[str, Question],
    files: Mapping[str, str],
) -> dict[str, dict[str, float]]:
    """The reward that the labels gave beside the one that the data's answers give, by where it was used.

    `questions` are those with their own answers, by id; questions without one are left out, as are
    responses whose grading failed. `files` is as `rewarded` makes it.
    """
    found = {}
    for name, pattern in files.items():
        rewards = list(_both_rewards(run, roles, grade, questions, pattern))
        if rewards:
            count = len(rewards)
            found[name] = {
                "responses": count,
                "label_reward": sum(label for label, _ in rewards) / count,
                "true_reward": sum(true for _, true in rewards) / count,
                "agree": sum(label == true for label, true in rewards) / count,
            }
    return found


def _both_rewards(
    run: RunDir, roles: Roles, grade: Grade, questions: Mapping[str, Question], pattern: str
) -> Iterator[tuple[int, int]]:
    for file in sorted(run.root.glob(pattern)):
        rows = run.read_jsonl(str(PurePath(file).relative_to(run.root)))
        known = [row for row in rows if questions[row["question"]].answer]
        ended = [row for row in known if row["outcome"] != Outcome.TRUNCATED]
        yield from ((0, 0) for _ in range(len(known) - len(ended)))
        graded = grade([(questions[row["question"]], roles.decode(row["token_ids"])) for row in ended])
        for row, verdict in zip(ended, graded, strict=True):
            if verdict.counts and Verdict(Outcome(row["outcome"])).counts:
                yield int(row["outcome"] == Outcome.CORRECT), verdict.reward
