"""Labels without references: the answer that most of a model's own responses agree on.

Source: Zuo et al., *TTRL: Test-Time Reinforcement Learning*, arXiv 2504.16084, section 2: N responses are
sampled to a question, a final answer is extracted from each, the most frequent one is the label, and a
response's reward is whether its answer is the label. There the vote is taken anew in every step, of the
model that is being trained; here once, of the base model, before phase 1.

The rules of the vote:
- A response votes if it ended by itself and has a final answer (`Voter.final_answer`).
- Answers of the same text, whitespace aside, are the same. Other answers are compared with the first answer
  of each group, in the order in which the groups began, by grading the response against that answer; it
  joins the first group that it is correct for, or begins a new one.
- The group with the most votes wins; of equally large ones the one that began first.
- Agreement is the winner's votes over all responses that were sampled, also those that did not vote.
- The winner is a label only if the response that it comes from is graded correct against it: an answer that
  the verifier cannot read would give every response the reward 0.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdzero import stopping
from sdzero.errors import UserError
from sdzero.method.graded import GradedSampler
from sdzero.method.grading import Grade
from sdzero.questions.question import Question
from sdzero.rollout.engine import Request, Sampling, seed_of
from sdzero.verify.agreement import FinalAnswer, labelled, one_line
from sdzero.verify.verdict import Outcome


@dataclass
class Group:
    """Responses that give the same answer. `answer` and `response` are those of the first of them."""

    answer: str
    response: str
    votes: int


@dataclass(frozen=True)
class Vote:
    """How the responses to one question voted. `groups` are in the order in which they began; `samples`
    counts all responses, `failed` the comparisons that ended in a time-out or an error of the verifier."""

    question: Question
    samples: int
    groups: tuple[Group, ...]
    failed: int = 0

    @property
    def winner(self) -> Group | None:
        """The largest group, of equal ones the first; None if no response voted."""
        return max(self.groups, key=lambda group: group.votes, default=None)

    @property
    def agreement(self) -> float:
        """The winner's share of all responses."""
        return self.winner.votes / self.samples if self.winner else 0.0

    @property
    def tied(self) -> bool:
        """Whether another group is as large as the winner."""
        sizes = [group.votes for group in self.groups]
        return sizes.count(max(sizes, default=0)) > 1


def sample_texts(
    questions: Sequence[Question],
    samples: int,
    sampling: Sampling,
    sampler: GradedSampler,
    *,
    seed: int,
    folder: str,
    stage: str,
    batch_size: int,
    progress: Callable[[str, int, int], None],
) -> list[list[str | None]]:
    """`samples` responses of the sampler's model to each question, as texts; None where the length limit cut.

    Nothing is graded. A finished batch is kept in `folder` of the run, and read if it is there; what was
    sampled is counted in the ledger under `stage`. Raises UserError if a prompt is over-long, or a stored
    batch holds other responses than are asked for.
    """
    prompts = {question.id: tuple(sampler.roles.generator_prompt(question)) for question in questions}
    sampler.check_fits([(q, prompts[q.id]) for q in questions], sampling.max_new_tokens)
    asked = [(q.id, index, seed_of(seed, stage, q.id, index)) for q in questions for index in range(samples)]
    rows: list[dict[str, Any]] = []
    for start in range(0, len(asked), batch_size):
        name = f"{folder}/batch-{start // batch_size:05d}.jsonl"
        part = asked[start : start + batch_size]
        if not sampler.run.path(name).exists():
            _sample_batch(part, prompts, sampling, sampler, name, stage)
        stored = sampler.run.read_jsonl(name)
        if [(row["question"], row["index"], row["seed"]) for row in stored] != part:
            raise UserError(
                "a stored batch holds other responses than this run asks for",
                str(sampler.run.path(name)),
                "the data or the recipe changed under the run: start in a new folder",
            )
        rows += stored
        progress(folder, len(rows), len(asked))
    texts = [None if row["truncated"] else sampler.roles.decode(row["token_ids"]) for row in rows]
    return [texts[start : start + samples] for start in range(0, len(texts), samples)]


def _sample_batch(
    asked: Sequence[tuple[str, int, int]],
    prompts: dict[str, tuple[int, ...]],
    sampling: Sampling,
    sampler: GradedSampler,
    name: str,
    stage: str,
) -> None:
    """Sample one batch, count it and keep it, in that order (see `GradedSampler.batch`)."""
    stopping.check()
    watch = sampler.ledger.start()
    requests = [Request(prompts[question], seed) for question, _, seed in asked]
    responses = sampler.responses(requests, sampling)
    rows: list[dict[str, Any]] = [
        {
            "question": question,
            "index": index,
            "seed": seed,
            "token_ids": list(responses[i].token_ids),
            "truncated": responses[i].stop_reason != "end",
        }
        for i, (question, index, seed) in enumerate(asked)
    ]
    spent = watch.read()
    sampler.ledger.record(
        stage,
        name,
        responses=len(rows),
        sampled_tokens=sum(len(row["token_ids"]) for row in rows),
        seconds=spent.seconds,
        joules=spent.joules,
    )
    sampler.run.write_jsonl(name, rows)


def take_votes(
    questions: Sequence[Question],
    texts: Sequence[Sequence[str | None]],
    final_answer: FinalAnswer,
    grade: Grade,
) -> list[Vote]:
    """The vote of each question, of its responses' texts (None: cut by the length limit).

    `grade` is asked about all questions at once, a distinct answer of each at a time, so that the verifier's
    processes have work.
    """
    waiting = [_distinct_answers(own, final_answer) for own in texts]
    groups: list[list[Group]] = [[] for _ in questions]
    failed = [0] * len(questions)
    while any(waiting):
        turn = [(place, own.popleft()) for place, own in enumerate(waiting) if own]
        items = [
            (labelled(questions[place], group.answer), candidate.response)
            for place, candidate in turn
            for group in groups[place]
        ]
        verdicts = iter(grade(items) if items else [])
        for place, candidate in turn:
            outcomes = [next(verdicts).outcome for _ in groups[place]]
            failed[place] += sum(outcome in (Outcome.TIMEOUT, Outcome.ERROR) for outcome in outcomes)
            if Outcome.CORRECT in outcomes:
                groups[place][outcomes.index(Outcome.CORRECT)].votes += candidate.votes
            else:
                groups[place].append(candidate)
    return [
        Vote(question, len(own), tuple(found), failures)
        for question, own, found, failures in zip(questions, texts, groups, failed, strict=True)
    ]


def _distinct_answers(texts: Sequence[str | None], final_answer: FinalAnswer) -> deque[Group]:
    """The answers that differ as texts, in the order of the responses that gave them first."""
    found: dict[str, Group] = {}
    for text in texts:
        answer = None if text is None else final_answer(text)
        if text is None or answer is None:
            continue
        found.setdefault(one_line(answer), Group(answer, text, 0)).votes += 1
    return deque(found.values())


def choose_labels(votes: Sequence[Vote], min_agreement: float, grade: Grade) -> list[dict[str, Any]]:
    """A row for each question: its label, or None and why it was left out.

    `left_out` is `no_votes`, `low_agreement` or `unreadable` (see the top of this file), or None.
    """
    winners = [(vote, vote.winner) for vote in votes]
    asked = [(labelled(v.question, w.answer), w.response) for v, w in winners if w is not None]
    readable = iter(grade(asked) if asked else [])
    rows = []
    for vote, winner in winners:
        left_out = None
        if winner is None:
            left_out = "no_votes"
        elif not next(readable).reward:
            left_out = "unreadable"
        elif vote.agreement < min_agreement:
            left_out = "low_agreement"
        rows.append(
            {
                "question": vote.question.id,
                "label": winner.answer if winner is not None and left_out is None else None,
                "left_out": left_out,
                "agreement": vote.agreement,
                "tied": vote.tied,
                "samples": vote.samples,
                "votes": [{"answer": group.answer, "votes": group.votes} for group in vote.groups],
            }
        )
    return rows


def label_statistics(rows: Sequence[dict[str, Any]], failed: int) -> dict[str, Any]:
    """What the report says of the labels, without looking at any reference.

    `agreement_by_tenth` counts labelled questions by agreement: the first number is of those below 0.1, the
    last of those from 0.9 on.
    """
    kept = [row for row in rows if row["label"] is not None]
    tenths = [0] * 10
    for row in kept:
        tenths[min(9, int(row["agreement"] * 10 + 1e-9))] += 1
    return {
        "questions": len(rows),
        "labelled": len(kept),
        "left_out": {
            reason: sum(row["left_out"] == reason for row in rows)
            for reason in ("no_votes", "low_agreement", "unreadable")
        },
        "tied": sum(row["tied"] for row in kept),
        "responses": sum(row["samples"] for row in rows),
        "did_not_vote": sum(row["samples"] - sum(own["votes"] for own in row["votes"]) for row in rows),
        "failed_comparisons": failed,
        "agreement": sum(row["agreement"] for row in kept) / len(kept) if kept else None,
        "agreement_by_tenth": tenths,
    }
