"""The study of label-free training: the same method, rewarded by the majority in place of the answers."""

from dataclasses import replace

from sdzero.errors import UserError
from sdzero.method.labels import STAGE, rewarded, true_rewards
from sdzero.pipeline import Stages
from sdzero.recipe import VOTING_SOURCES
from sdzero.run_labels import label_run
from sdzero.studies.phases import whole_run
from sdzero.studies.study import Chosen, Row, Study, changed, own_rows

NAME = "label-free"


def labels_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """A whole run on the same questions with labels; what the labels took is part of its cost."""
    labels = changed(stages.recipe.labels, source="majority")
    own = replace(stages, recipe=changed(stages.recipe, labels=labels))
    label_run(own)
    row = whole_run(own, NAME, "SD-Zero, label-free", chosen.distill)
    srt = Row("SRT, label-free", stages.srt_folder(name=f"{NAME}-srt"), (STAGE, *row.stages[:2]))
    return {
        **own_rows(stages, "base", "srt", "sdzero"),
        f"{NAME}-srt": srt,
        NAME: replace(row, stages=(STAGE, *row.stages)),
    }


def label_measures(stages: Stages) -> dict[str, float | None]:
    """How right the labels are, and both rewards of the same responses."""
    facts = stages.run.stage_info(STAGE)
    answered = {question.id: question for question in stages.training_questions}
    files = rewarded(f"{NAME}-collect", f"{NAME}-distill")
    rewards = true_rewards(stages.run, stages.roles, stages.grade, answered, files)
    measured: dict[str, float | None] = {
        "right": facts["right"],
        "agreement": facts["mean_agreement"],
        "used": facts["used"] / facts["questions"],
    }
    for place in files:
        for name in ("label_reward", "true_reward"):
            measured[f"{name}, {place}"] = rewards.get(place, {}).get(name)
    return measured


def check_voting(stages: Stages) -> None:
    """Raise UserError unless answers can be compared, and the recipe itself trains on the data's answers."""
    recipe = stages.recipe
    if recipe.verifier.name != "math" or recipe.data.source not in VOTING_SOURCES:
        raise UserError(
            "responses to these questions have no answers that could be compared",
            "verifier.name, data.source",
            f"use a recipe with verifier.name=math and data.source one of {', '.join(VOTING_SOURCES)}",
        )
    if recipe.labels.source != "reference":
        raise UserError(
            "the study compares labels with the data's answers, and the recipe trains on labels itself",
            "labels.source",
            "leave it out",
        )


LABEL_STUDY = Study(
    "labels",
    "What is lost without reference answers, when the majority of own responses stands for them?",
    {},
    labels_rows,
    trains_srt=True,
    check=check_voting,
    measure=label_measures,
    measured={
        "right": "share of labels that are right",
        "agreement": "share of the samples that gave the label",
        "used": "share of questions that have a label",
        **{
            f"{name}, {place}": f"{label}, {place}"
            for place in rewarded()
            for name, label in (("label_reward", "reward by the labels"), ("true_reward", "true reward"))
        },
    },
)
