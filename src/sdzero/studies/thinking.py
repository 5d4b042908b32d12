"""A study of models that search within a response: does phase 2 suppress false starts, and does it cost them?

Phase 2 is trained again from the same SRT model with the divergence on a part of each response
(`distill.divergence_on`). Beside the scores, false starts are counted in the responses that each model was
scored on. The two control phrases are left out of the count: an SRT model writes them between attempts.
"""

from collections.abc import Sequence

from sdzero.analyze.evolution import binned, step_rows
from sdzero.analyze.style import attempts_in
from sdzero.errors import UserError
from sdzero.method.restrict import false_starts_in
from sdzero.pipeline import Stages
from sdzero.studies.study import Chosen, Row, Study, changed, own_rows, trained

RESTRICTED = {
    "thinking-restart": ("after_last_false_start", "SD-Zero, after the last false start"),
    "thinking-answer": ("final_answer", "SD-Zero, final answer"),
}
"""Stage -> what carries the divergence, and the row's label."""

LABELS = {"base": "base", "srt": "SRT", "sdzero": "SD-Zero"} | {
    name: label for name, (_, label) in RESTRICTED.items()
}


def thinking_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """SD-Zero with the divergence on all tokens, and on each part."""
    rows = own_rows(stages, "base", "srt", "sdzero")
    for name, (on, label) in RESTRICTED.items():
        stages.distill(name, changed(chosen.distill, divergence_on=on))
        rows[name] = Row(label, trained(stages, name), ("collect", "srt", name))
    return rows


def check_all(stages: Stages) -> None:
    """Raise UserError if the recipe's own phase 2 is restricted already."""
    if stages.recipe.distill.divergence_on != "all":
        raise UserError(
            "the study compares with a divergence on all tokens, and the recipe restricts it",
            "distill.divergence_on",
            "set it to `all`",
        )


def without_phrases(stages: Stages, text: str) -> str:
    """A response less the control phrases that stand in it."""
    for phrase in (stages.recipe.phrases.wrong, stages.recipe.phrases.correct):
        text = text.replace(phrase, "")
    return text


def searching(
    texts: Sequence[str], rewards: Sequence[int], markers: Sequence[str]
) -> dict[str, float | None]:
    """False starts a response; and the share of right responses that have one (None without a right one)."""
    counts = [false_starts_in(text, markers) for text in texts]
    of_right = [count > 0 for count, reward in zip(counts, rewards, strict=True) if reward]
    return {
        "false_starts": sum(counts) / len(counts),
        "right_with": sum(of_right) / len(of_right) if of_right else None,
    }


def measure(stages: Stages) -> dict[str, float | None]:
    """False starts and attempts of each model; phase 2's divergence by reward, and what share carried."""
    measured: dict[str, float | None] = {}
    markers = stages.recipe.distill.false_start_markers
    for name in LABELS:
        rows = [
            row
            for file in sorted(stages.run.path(f"evaluate/{name}/responses").glob("batch-*.jsonl"))
            for row in stages.run.read_jsonl(str(file.relative_to(stages.run.root)))
        ]
        texts = [without_phrases(stages, stages.roles.decode(row["token_ids"])) for row in rows]
        found = searching(texts, [int(row["outcome"] == "correct") for row in rows], markers)
        measured |= {f"{key}_{name}": value for key, value in found.items()}
        measured[f"attempts_{name}"] = sum(map(attempts_in, texts)) / len(texts)
    (whole,) = binned(step_rows(stages.run, "distill"), 1)
    measured |= {f"divergence_{reward}": whole[f"divergence_{reward}"] for reward in ("r0", "r1")}
    for name in RESTRICTED:
        shares = [float(step["carrying_share"]) for step in step_rows(stages.run, name)]
        measured[f"carrying_{name}"] = sum(shares) / len(shares)
    return measured


MEASURED = {
    **{f"false_starts_{name}": f"false starts a response, {label}" for name, label in LABELS.items()},
    **{
        f"right_with_{name}": f"share of right responses with a false start, {label}"
        for name, label in LABELS.items()
    },
    **{f"attempts_{name}": f"attempts a response, {label}" for name, label in LABELS.items()},
    **{f"divergence_r{reward}": f"divergence, nats a token, SD-Zero, r = {reward}" for reward in (0, 1)},
    **{
        f"carrying_{name}": f"share of the tokens that carried the divergence, {label}"
        for name, (_, label) in RESTRICTED.items()
    },
}

THINKING_STUDY = Study(
    "thinking",
    "Does phase 2 suppress false starts within a response, and does it help to restrict the divergence?",
    {},
    thinking_rows,
    check=check_all,
    measure=measure,
    measured=MEASURED,
)
