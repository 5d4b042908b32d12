"""Training responses graded with the true answers, beside the rewards that they were trained with.

Only for the report: nothing that trains reads what is found here. Questions whose data have no answer, and
responses that one of the two verdicts could not be given for, are left out.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdzero.method.grading import Grade
from sdzero.questions.question import Question
from sdzero.run_dir import RunDir
from sdzero.verify.verdict import Outcome

Decode = Callable[[Sequence[int]], str]


def rewards_of_files(
    run: RunDir, files: Sequence[Path], truth: Mapping[str, Question], grade: Grade, decode: Decode
) -> dict[str, Any]:
    """The mean rewards of stored responses (files of `GradedSampler`): by the labels, and by the truth.

    `of` counts the responses that have both, `all` those that are stored. `label` and `true` are mean rewards
    over those with both, `agree` is the share of them whose two rewards are equal. Without any they are None.
    """
    rows = [row for file in files for row in run.read_jsonl(str(file.relative_to(run.root)))]
    known = [
        row for row in rows if row["outcome"] != Outcome.ERROR and truth.get(row["question"], _NOTHING).answer
    ]
    finished = [row for row in known if row["outcome"] != Outcome.TRUNCATED]
    verdicts = iter(grade([(truth[row["question"]], decode(row["token_ids"])) for row in finished]))
    pairs = []
    for row in known:
        own = int(row["outcome"] == Outcome.CORRECT)
        if row["outcome"] == Outcome.TRUNCATED:  # reward 0 whatever it says
            pairs.append((own, 0))
            continue
        verdict = next(verdicts)
        if verdict.counts:
            pairs.append((own, verdict.reward))
    return {"all": len(rows)} | _means(pairs)


def rewards_of_traces(
    rows: Sequence[Mapping[str, Any]], truth: Mapping[str, Question], grade: Grade, decode: Decode
) -> dict[str, Any]:
    """The share of kept traces (JSON rows) whose revision is truly right: `all`, `of` and `true` as above."""
    known = [row for row in rows if truth.get(row["question_id"], _NOTHING).answer]
    verdicts = grade([(truth[row["question_id"]], decode(row["revised_ids"])) for row in known])
    rewards = [verdict.reward for verdict in verdicts if verdict.counts]
    return {"all": len(rows), "of": len(rewards), "true": _mean(rewards)}


_NOTHING = Question("", "", "")
"""Stands for a question that is not known."""


def _means(pairs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {
        "of": len(pairs),
        "label": _mean([label for label, _ in pairs]),
        "true": _mean([true for _, true in pairs]),
        "agree": _mean([label == true for label, true in pairs]),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
