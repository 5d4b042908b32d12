"""The study of label-free mode: SD-Zero on answers that the base model's responses agree on."""

from dataclasses import replace

from sdzero.errors import UserError
from sdzero.label_report import true_rewards_of
from sdzero.pipeline import Stages
from sdzero.run_labels import hide_references
from sdzero.studies.phases import whole_run
from sdzero.studies.study import Chosen, Row, Study, own_rows
from sdzero.verify.agreement import voter_of

NAME = "label-free"
LABEL_STAGE = f"{NAME}-labels"


def check_references(stages: Stages) -> None:
    """Raise UserError if the run has no references to compare with, or its verifier cannot vote."""
    if stages.recipe.labels.is_majority:
        raise UserError(
            "the study needs the true answers beside the labels, and this recipe hides them",
            "labels.source",
            "set it to reference; the other keys of `labels` are the study's",
        )
    voter_of(stages.recipe.verifier.name)


def label_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Both phases again, on the same questions with their references hidden."""
    own = hide_references(stages, LABEL_STAGE)
    whole = whole_run(own, NAME, "SD-Zero, label-free", chosen.distill)
    labels_too = (LABEL_STAGE, *whole.stages)
    srt = Row("SRT, label-free", stages.srt_folder(name=f"{NAME}-srt"), labels_too[:-1])
    return {
        **own_rows(stages, "base", "srt", "sdzero"),
        f"{NAME}-srt": srt,
        NAME: replace(whole, stages=labels_too),
    }


def measure_labels(stages: Stages) -> dict[str, float | None]:
    """What the labels are worth, and the rewards that they gave beside the true ones."""
    statistics = stages.run.read_json(f"{LABEL_STAGE}/statistics.json")
    right = statistics["right"]
    measured: dict[str, float | None] = {
        "labelled": statistics["labelled"] / statistics["questions"],
        "agreement": statistics["agreement"],
        "right": right["share"],
        "right_of_unanimous": right["share_of_unanimous"],
        "agreement_of_right": right["agreement_of_right"],
        "agreement_of_wrong": right["agreement_of_wrong"],
    }
    found = true_rewards_of(stages.run, LABEL_STAGE)
    rounds = [found[f"{NAME}-collect/round-{n}"] for n in range(1, stages.recipe.collect.rounds + 1)]
    phase_2 = found[f"{NAME}-distill"]
    measured["traces"] = _mean_over([one["traces"] for one in rounds], "true")
    for kind in ("label", "true"):
        measured[f"initial_{kind}"] = _mean_over([one["initial"] for one in rounds], kind)
        for part in ("responses", "first_fifth", "last_fifth"):
            measured[f"{part}_{kind}"] = phase_2[part][kind] if part in phase_2 else None
    return measured


def _mean_over(groups: list[dict[str, float]], key: str) -> float | None:
    """The mean over the responses of several groups."""
    of = sum(group["of"] for group in groups)
    return sum(group[key] * group["of"] for group in groups if group["of"]) / of if of else None


MEASURED = {
    "labelled": "share of the training questions with a label",
    "agreement": "mean agreement on the label",
    "right": "share of labels that are right",
    "right_of_unanimous": "the same of labels that all responses agree on",
    "agreement_of_right": "mean agreement on right labels",
    "agreement_of_wrong": "mean agreement on wrong labels",
    "traces": "share of kept traces whose revision is truly right",
    **{
        f"{part}_{kind}": f"{kind} reward, {label}"
        for part, label in (
            ("initial", "initial responses of phase 1"),
            ("responses", "responses of phase 2"),
            ("first_fifth", "first fifth of phase 2"),
            ("last_fifth", "last fifth of phase 2"),
        )
        for kind in ("label", "true")
    },
}

LABEL_STUDIES = (
    Study(
        "labels",
        "Can agreement among the model's own responses take the place of reference answers?",
        {},
        label_rows,
        trains_srt=True,
        check=check_references,
        measure=measure_labels,
        measured=MEASURED,
    ),
)
