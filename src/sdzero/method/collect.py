"""Phase 1a: initial responses, verdicts, revisions, and what is kept of them: `D_revision`.

Paper, section 3.1: y_init ~ pi(.|x), r = r(y_init, a), y_revised ~ pi(.|x, y_init, P_r); a trace
(x, y_init, P_r, y_revised) is kept if y_revised is verified correct. Both branches, r = 0 and r = 1,
are collected (the authors' code leaves r = 1 out by default; `revise_correct: false` does the same).
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdzero.errors import UserError
from sdzero.method.graded import Draw, Graded, GradedSampler
from sdzero.method.trace import RevisionTrace
from sdzero.questions.question import Question
from sdzero.recipe import CollectSettings
from sdzero.rollout.engine import Sampling, seed_of
from sdzero.verify.verdict import Verdict


@dataclass(frozen=True)
class Collection:
    """The traces of one round, and statistics on how they came about (JSON-like)."""

    traces: list[RevisionTrace]
    statistics: dict[str, Any]


def initial_draws(
    questions: Sequence[Question], sampler: GradedSampler, settings: CollectSettings, seed: int, round_: int
) -> list[Draw]:
    """Which initial responses to sample: one a question, then a second one, until the target."""
    draws = [
        Draw(
            question,
            tuple(sampler.roles.generator_prompt(question)),
            seed_of(seed, "initial", round_, question.id, index),
            index,
        )
        for index in range(settings.initial_per_question)
        for question in questions
    ]
    return draws[: settings.target_initial]


def revision_draws(
    initials: Sequence[Graded], sampler: GradedSampler, settings: CollectSettings, seed: int, round_: int
) -> tuple[list[tuple[Graded, Draw]], int]:
    """Which revisions to sample, each with its initial response; and how many were over-long.

    Left out: truncated responses, those whose grading failed by our fault, and correct ones where
    `revise_correct` is off. A context over `max_context`, or over the model's own
    (with room for the revision), follows `overlong`.
    """
    pairs: list[tuple[Graded, Draw]] = []
    overlong = 0
    limit = sampler.context_limit(settings.max_context)
    for initial in initials:
        if initial.truncated or not initial.verdict.counts:
            continue
        if initial.reward and not settings.revise_correct:
            continue
        context = sampler.roles.reviser_prompt(initial.prompt_ids, initial.token_ids, initial.reward)
        if limit is not None and len(context) + settings.max_new_tokens > limit:
            if settings.overlong == "error":
                raise UserError(
                    f"the Reviser's context for question {initial.question.id} has {len(context)} tokens and"
                    f" leaves no room for {settings.max_new_tokens} more within {limit}",
                    "collect.max_context",
                    "raise collect.max_context, lower collect.max_new_tokens, or set collect.overlong=drop",
                )
            overlong += 1
            continue
        for copy in range(settings.revisions_per_initial):
            name = (initial.question.id, initial.index, copy)
            index = initial.index * settings.revisions_per_initial + copy
            seed_here = seed_of(seed, "revised", round_, *name)
            pairs.append((initial, Draw(initial.question, tuple(context), seed_here, index)))
    return pairs, overlong


def strip_opening(
    ids: Sequence[int], openings: Sequence[str], sampler: GradedSampler
) -> tuple[int, ...] | None:
    """Drop the leading tokens that spell one of the openings (and the white space after it).

    None if the text starts with no opening, or if none ends at a token boundary: ids are never
    re-encoded to make one.
    """
    text = sampler.roles.decode(ids)
    opening = next((o for o in openings if text.startswith(o)), None)
    if opening is None:
        return None
    rest = text[len(opening) :].lstrip()
    for cut in range(1, len(ids)):
        tail = sampler.roles.decode(ids[cut:])
        if tail == rest:
            return tuple(ids[cut:])
        if len(tail) < len(rest):
            return None
    return None


def collect(
    questions: Sequence[Question],
    sampler: GradedSampler,
    settings: CollectSettings,
    *,
    seed: int,
    folder: str = "collect",
    round_: int = 1,
    stage: str = "collect",
    only_verified: bool = True,
) -> Collection:
    """Collect `D_revision` on `questions` with the sampler's model in both roles.

    `only_verified` off keeps revisions that are wrong too (an ablation of the paper's filter); those that
    were cut or could not be graded are left out all the same. `stage` is the ledger's.

    Batches are kept under `folder` of the run as they finish, and `statistics.json` at the end, traces or
    not. Raises UserError if no trace is left,
    saying whether the model got everything wrong or its revisions never helped.
    """
    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.top_p)
    initials = sampler.batches(
        initial_draws(questions, sampler, settings, seed, round_),
        sampling,
        folder=f"{folder}/initial",
        stage=stage,
        batch_size=settings.batch_size,
        trim=settings.trim_repeats,
    )
    pairs, overlong = revision_draws(initials, sampler, settings, seed, round_)

    def enough(graded: list[Graded]) -> bool:
        if not settings.stop_at_target or settings.target_traces is None:
            return False
        return sum(g.reward for g in graded) >= settings.target_traces

    revisions = sampler.batches(
        [draw for _, draw in pairs],
        sampling,
        folder=f"{folder}/revised",
        stage=stage,
        batch_size=settings.batch_size,
        trim=settings.trim_repeats,
        enough=enough,
    )
    sampler.rest()
    traces: list[RevisionTrace] = []
    stripped = 0
    for (initial, _), revised in zip(pairs, revisions, strict=False):  # `enough` may have stopped early
        if not revised.reward and (only_verified or revised.truncated or not revised.verdict.counts):
            continue
        revised_ids = revised.token_ids
        if settings.strip_openings:
            shorter = strip_opening(revised_ids, settings.strip_openings, sampler)
            if shorter is not None and sampler.regrade(revised, shorter).reward:
                revised_ids, stripped = shorter, stripped + 1
        traces.append(
            RevisionTrace(
                question_id=initial.question.id,
                prompt_ids=initial.prompt_ids,
                initial_ids=initial.token_ids,
                reward=initial.reward,
                revised_ids=revised_ids,
            )
        )
    kept = traces
    if settings.target_traces is not None and len(traces) > settings.target_traces:
        kept = random.Random(seed_of(seed, "keep", round_)).sample(traces, settings.target_traces)
    statistics = _statistics(initials, pairs, revisions)
    statistics |= {"overlong": overlong, "stripped": stripped, "verified": len(traces), "kept": len(kept)}
    where = f"{folder}/statistics.json"
    sampler.run.write_json(where, statistics)
    if not kept:
        raise UserError(
            _why_empty(statistics),
            str(sampler.run.path(where)),
            "read responses in the batches beside it; a stronger model, easier questions or a higher"
            " collect.temperature give traces. Start again in a new folder",
        )
    return Collection(kept, statistics)


def _counts(verdicts: Sequence[Verdict]) -> dict[str, int]:
    return dict(sorted(Counter(str(verdict.outcome) for verdict in verdicts).items()))


def _statistics(
    initials: Sequence[Graded], pairs: Sequence[tuple[Graded, Draw]], revisions: Sequence[Graded]
) -> dict[str, Any]:
    after: dict[int, list[int]] = {0: [], 1: []}
    for (initial, _), revised in zip(pairs, revisions, strict=False):
        if revised.verdict.counts:
            after[initial.reward].append(revised.reward)
    return {
        "initial": len(initials),
        "initial_verdicts": _counts([g.verdict for g in initials]),
        "initial_tokens": sum(g.sampled_tokens for g in initials),
        "revised": len(revisions),
        "revised_verdicts": _counts([g.verdict for g in revisions]),
        "revised_tokens": sum(g.sampled_tokens for g in revisions),
        "revised_right_after_wrong": _share(after[0]),
        "revised_right_after_right": _share(after[1]),
        "trimmed": sum(g.trimmed for g in [*initials, *revisions]),
    }


def _share(values: Sequence[int]) -> dict[str, float]:
    return {"of": len(values), "share": sum(values) / len(values) if values else 0.0}


def _why_empty(statistics: dict[str, Any]) -> str:
    if not statistics["revised"]:
        return (
            f"no initial response could be revised ({statistics['initial']} sampled,"
            f" verdicts {statistics['initial_verdicts']}, {statistics['overlong']} over-long)"
        )
    return (
        f"no revision was verified correct ({statistics['initial']} initial responses, verdicts"
        f" {statistics['initial_verdicts']}; {statistics['revised']} revisions, verdicts"
        f" {statistics['revised_verdicts']}): there is nothing to train on"
    )
