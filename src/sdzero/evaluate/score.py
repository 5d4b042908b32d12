"""Scores of a model on questions: avg@k, pass@k, length, and generate-then-revise.

n counts distinct questions: a question's score is its mean over k responses, the standard error is
that of the mean over questions. Responses whose grading failed by our own fault are left out.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sdzero.errors import UserError
from sdzero.evaluate.stats import mean_and_standard_error, pass_at_k
from sdzero.method.graded import Draw, Graded, GradedSampler
from sdzero.questions.question import Question
from sdzero.recipe import EvaluateSettings
from sdzero.rollout.engine import Sampling, seed_of


def evaluate(
    questions: Sequence[Question],
    sampler: GradedSampler,
    settings: EvaluateSettings,
    *,
    seed: int,
    folder: str,
    stage: str = "evaluate",
    revise: bool = True,
) -> dict[str, Any]:
    """Score the sampler's model as Generator, and with `revise` as its own Reviser.

    Returns a JSON-like dict: `evaluation` (avg, se, k, questions, pass_at_k, mean_tokens, verdicts),
    `revision` (None without `revise`) and `per_question` (id -> list of rewards). Fractions are in
    [0, 1], lengths in tokens. Batches are kept under `folder` of the run.
    """
    if not questions:
        raise UserError("there are no questions to evaluate on", "data.test", "set data.test to 1 or more")
    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.top_p)
    draws = [
        Draw(
            question,
            tuple(sampler.roles.generator_prompt(question)),
            seed_of(seed, "evaluate", folder, question.id, index),
            index,
        )
        for question in questions
        for index in range(settings.k)
    ]
    graded = sampler.batches(
        draws, sampling, folder=f"{folder}/responses", stage=stage, batch_size=settings.batch_size
    )
    result = summarize(graded, settings.k)
    result["revision"] = None
    if revise:
        firsts = [one for one in graded if one.index == 0 and one.verdict.counts]
        result["revision"] = _generate_then_revise(firsts, sampler, sampling, settings, seed, folder, stage)
    sampler.rest()
    return result


def summarize(graded: Sequence[Graded], k: int) -> dict[str, Any]:
    """avg@k, its standard error over questions, pass@k, mean length, and counts of verdicts."""
    rewards: dict[str, list[int]] = {}
    for one in graded:
        if one.verdict.counts:
            rewards.setdefault(one.question.id, []).append(one.reward)
    if not rewards:
        raise UserError(
            "not one response could be graded: the verifier failed on all of them",
            graded[0].verdict.detail if graded else None,
            "run the verifier by hand on one response",
        )
    mean, error = mean_and_standard_error([sum(own) / len(own) for own in rewards.values()])
    passed = [pass_at_k(sum(own), len(own), min(k, len(own))) for own in rewards.values()]
    verdicts = Counter(str(one.verdict.outcome) for one in graded)
    return {
        "evaluation": {
            "avg": mean,
            "se": error,
            "k": k,
            "questions": len(rewards),
            "pass_at_k": sum(passed) / len(passed),
            "mean_tokens": sum(one.sampled_tokens for one in graded) / len(graded),
            "verdicts": dict(sorted(verdicts.items())),
        },
        "per_question": rewards,
    }


def _generate_then_revise(
    firsts: Sequence[Graded],
    sampler: GradedSampler,
    sampling: Sampling,
    settings: EvaluateSettings,
    seed: int,
    folder: str,
    stage: str,
) -> dict[str, float]:
    """Revise each question's first response once, given its true reward (paper, section 4.3)."""
    draws = [
        Draw(
            first.question,
            tuple(sampler.roles.reviser_prompt(first.prompt_ids, first.token_ids, first.reward)),
            seed_of(seed, "evaluate-revise", folder, first.question.id),
        )
        for first in firsts
    ]
    revised = sampler.batches(
        draws, sampling, folder=f"{folder}/revised", stage=stage, batch_size=settings.batch_size
    )
    pairs = [(a, b) for a, b in zip(firsts, revised, strict=True) if b.verdict.counts]
    if not pairs:
        raise UserError(
            "not one revision could be graded: the verifier failed on all of them",
            revised[0].verdict.detail if revised else None,
            "run the verifier by hand on one response",
        )
    wrong = [b.reward for a, b in pairs if not a.reward]
    right = [b.reward for a, b in pairs if a.reward]
    return {
        "first": sum(a.reward for a, _ in pairs) / len(pairs),
        "revised": sum(b.reward for _, b in pairs) / len(pairs),
        "correction_rate": sum(wrong) / len(wrong) if wrong else 0.0,
        "regression_rate": 1 - sum(right) / len(right) if right else 0.0,
        "first_tokens": sum(a.sampled_tokens for a, _ in pairs) / len(pairs),
        "revised_tokens": sum(b.sampled_tokens for _, b in pairs) / len(pairs),
    }
