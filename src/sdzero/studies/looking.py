"""Studies that train nothing: what is in the runs already, looked at."""

import re
from collections.abc import Sequence
from typing import Any

from sdzero.analyze.evolution import evolution
from sdzero.analyze.localization import (
    Localized,
    localization,
    mean_over_questions,
    share_at,
    token_divergences,
)
from sdzero.analyze.style import attempts_in, style
from sdzero.errors import UserError
from sdzero.method.graded import Draw
from sdzero.pipeline import Stages
from sdzero.results import BASELINES, NAMES
from sdzero.rollout.engine import Sampling, seed_of
from sdzero.studies.study import Chosen, Row, Study, own_rows, trained

CURVE_BINS = 5
_CLOSED_BOX = re.compile(r"\\boxed\{[^{}]*\}")
LOCALIZED_BATCH = 64
OWN = ("base", "srt", "sdzero")


def own_models(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """The three models that every run has."""
    return own_rows(stages, *OWN)


def revise_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Generate-then-revise for every method that the run holds."""
    rows = own_rows(stages, *OWN)
    for name in BASELINES:
        if stages.run.is_done(name):
            rows[name] = Row(NAMES[name], trained(stages, name), (name,))
    return {name: rows[name] for name in NAMES if name in rows}


def curves(stages: Stages) -> dict[str, float | None]:
    """Phase 2's first and last fifth of steps, and the style of each model's responses when it is scored."""
    parts = evolution(stages.run, stages.roles.decode, "distill", CURVE_BINS)
    measured: dict[str, float | None] = {}
    for place, part in (("start", parts[0]), ("end", parts[-1])):
        for name in ("tokens", "hedge_share", "reward", "entropy"):
            measured[f"{name}_{place}"] = part[name]
    for model in OWN:
        found = style_of(stages, model)
        measured[f"hedges_{model}"] = found["hedges"]["share"]
        measured[f"attempts_{model}"] = found["attempts"]
    return measured


def style_of(stages: Stages, name: str) -> dict[str, Any]:
    """The style of the responses that a model was scored on."""
    rows = [
        row
        for file in sorted(stages.run.path(f"evaluate/{name}/responses").glob("batch-*.jsonl"))
        for row in stages.run.read_jsonl(str(file.relative_to(stages.run.root)))
    ]
    texts = [stages.roles.decode(row["token_ids"]) for row in rows]
    return style(texts, [row["sampled_tokens"] for row in rows])


def check_tuning(stages: Stages) -> None:
    """Raise UserError if there is no tuning set."""
    if not stages.sets.tuning:
        raise UserError(
            "self-localization is measured on the tuning set, and there is none",
            "data.tuning",
            "set it above 0",
        )


def localize(stages: Stages) -> dict[str, float | None]:
    """The SRT model as Generator against itself as Reviser, on its responses to the tuning questions."""
    settings = stages.recipe.distill
    model = stages.load(stages.srt_folder())
    sampler = stages.sampler(model)
    draws = [
        Draw(
            question,
            tuple(stages.roles.generator_prompt(question)),
            seed_of(stages.recipe.seed, "localization", question.id),
        )
        for question in stages.sets.tuning
    ]
    graded = sampler.batches(
        draws,
        Sampling(settings.temperature, settings.max_new_tokens, settings.top_p),
        folder="localization/responses",
        stage="localization",
        batch_size=stages.recipe.evaluate.batch_size,
    )
    limit = sampler.context_limit(settings.max_context)
    paired = [
        (one, stages.roles.distillation_pair(one.prompt_ids, one.token_ids, one.reward))
        for one in graded
        if one.verdict.counts
    ]
    paired = [(one, pair) for one, pair in paired if limit is None or len(pair.teacher_ids) <= limit]
    pairs = [pair for _, pair in paired]
    divergences = token_divergences(model, model, pairs, "reverse", settings.chunk_tokens, LOCALIZED_BATCH)
    responses = []
    for (one, _), own in zip(paired, divergences, strict=True):
        solution = one.question.solution
        reference = None
        if solution:
            reference = stages.roles.without_end(
                stages.roles.demonstration_ids(solution, f"question {one.question.id}")
            )
        responses.append(
            Localized.of(
                one.question.id, one.reward, own, one.token_ids, stages.roles.end_token_id, reference
            )
        )
    single = [
        own
        for (one, _), own in zip(paired, responses, strict=True)
        if attempts_in(stages.roles.decode(one.token_ids)) <= 1
    ]
    found, found_single = localization(responses), localization(single)
    stages.run.write_json("localization/found.json", {"all": found, "one_attempt": found_single})
    after_first = {
        f"after_first_{reward}": _mean(
            mean_over_questions(
                {
                    own.question: [share]
                    for (one, _), own in zip(paired, responses, strict=True)
                    if own.reward == int(reward[1])
                    and (share := share_after_first_answer(stages, one.token_ids, own.divergences))
                    is not None
                }
            )
        )
        for reward in ("r0", "r1")
    }
    return (
        localization_figures(found)
        | after_first
        | {
            f"{name}_single_{reward}": _mean(found_single[reward][name])
            for name in ("divergence", "top_share", "flat_share")
            for reward in ("r0", "r1")
        }
    )


def share_after_first_answer(
    stages: Stages, ids: Sequence[int], divergences: Sequence[float]
) -> float | None:
    """The share of a response's divergence on the token that follows its first boxed answer: where it ends,
    or goes on. None without an answer."""
    for place in range(1, len(ids)):
        if _CLOSED_BOX.search(stages.roles.decode(ids[:place])):
            return share_at(divergences, place)
    return None


def localization_figures(found: dict[str, Any]) -> dict[str, float | None]:
    """The figures of the study, out of everything that was measured; None where there is nothing to see."""
    measured: dict[str, float | None] = {}
    for reward in ("r0", "r1"):
        group = found[reward]
        for name in ("divergence", "top_share", "flat_share", "first_token", "end_token"):
            measured[f"{name}_{reward}"] = _mean(group[name])
    first_wrong = found["r0"].get("first_wrong", {})
    for name in ("near", "near_by_chance", "near_by_first_token", "exact"):
        measured[name] = _mean(first_wrong.get(name))
    return measured


def _mean(value: dict[str, Any] | None) -> float | None:
    return None if value is None else float(value["mean"])


CURVE_LABELS = {
    **{
        f"{name}_{place}": f"{label}, {when} fifth of phase 2"
        for name, label in (
            ("tokens", "tokens a response"),
            ("hedge_share", "share of responses that hedge"),
            ("reward", "reward"),
            ("entropy", "entropy, nats a token"),
        )
        for place, when in (("start", "first"), ("end", "last"))
    },
    **{f"hedges_{name}": f"share of responses that hedge, {NAMES[name]}" for name in OWN},
    **{f"attempts_{name}": f"attempts a response, {NAMES[name]}" for name in OWN},
}
LOCALIZATION_LABELS = {
    **{
        f"{name}_{reward}": f"{label}, r = {reward[1]}"
        for name, label in (
            ("divergence", "divergence, nats a token"),
            ("top_share", "share of it on the top fifth of tokens"),
            ("flat_share", "the same if it were flat"),
            ("first_token", "share of it on the first token"),
            ("end_token", "share of it on the end token"),
        )
        for reward in ("r0", "r1")
    },
    **{
        f"{name}_single_{reward}": f"{label}, responses with one attempt, r = {reward[1]}"
        for name, label in (
            ("divergence", "divergence, nats a token"),
            ("top_share", "share of it on the top fifth of tokens"),
            ("flat_share", "the same if it were flat"),
        )
        for reward in ("r0", "r1")
    },
    **{
        f"after_first_r{reward}": f"share of it on the token after the first answer, r = {reward}"
        for reward in (0, 1)
    },
    "near": "wrong responses whose peak is at or next to the first wrong token",
    "near_by_chance": "the same for a random token",
    "near_by_first_token": "the same for the first token",
    "exact": "wrong responses whose peak is the first wrong token",
}

LOOKING_STUDIES = (
    Study(
        "revise",
        "What does each model make of its own first answer?",
        {
            "base, first and revised": "59.6 and 60.7",
            "SRT": "66.7 and 71.7",
            "SD-Zero": "68.3 and 73.6 (AIME24)",
        },
        revise_rows,
    ),
    Study(
        "curves",
        "What happens to length and hedge words over training?",
        {"first tokens of base": "3708", "SRT": "8458", "SD-Zero": "3518 (AIME24)"},
        own_models,
        measure=curves,
        measured=CURVE_LABELS,
    ),
    Study(
        "localization",
        "Where does the Reviser want to change a response?",
        {
            "r = 0": "the divergence sits on few tokens, where the reasoning goes wrong",
            "r = 1": "it is flat",
        },
        own_models,
        measure=localize,
        check=check_tuning,
        measured=LOCALIZATION_LABELS,
    ),
)
