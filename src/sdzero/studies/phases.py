"""Studies of the method's parts: each trains SRT or phase 2 again with one thing changed."""

from dataclasses import replace

from sdzero.baselines.registry import baseline_named
from sdzero.baselines.sft import check_solutions
from sdzero.compare_methods import Method, model_at, train_guarded
from sdzero.errors import UserError
from sdzero.pipeline import Stages
from sdzero.questions.question import Question
from sdzero.questions.splits import QuestionSets
from sdzero.recipe_distill import DistillSettings
from sdzero.run_context import Budget
from sdzero.studies.study import Chosen, Row, Study, changed, own_rows, trained

DIVERGENCES = ("reverse", "forward", "mixed", "jsd")
N1_SHARES = (40, 50, 60)
"""Per cent of the questions that go to phase 1: the paper's 6K, 7.5K and 9K of 15K."""
SYNC_ROUNDS = 3
SYNC_RATE = 0.5
"""Rounds after the first are trained at this multiple of phase 2's learning rate."""


def _srt_variant(stages: Stages, name: str, label: str, **values: float) -> Row:
    stages.phase_1(srt=name, settings=changed(stages.recipe.srt, **values))
    return Row(label, stages.srt_folder(name=name), ("collect", name))


def _distill_variant(stages: Stages, name: str, label: str, settings: DistillSettings) -> Row:
    stages.distill(name, settings)
    return Row(label, trained(stages, name), ("collect", "srt", name))


def loss_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """SRT with each of its two losses alone."""
    return {
        **own_rows(stages, "base", "srt"),
        "loss-generation": _srt_variant(
            stages, "loss-generation", "generation loss only", revision_weight=0.0
        ),
        "loss-revision": _srt_variant(stages, "loss-revision", "revision loss only", generation_weight=0.0),
    }


def no_srt_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Phase 2 with the base model as Generator and Reviser, on all questions."""
    own = replace(stages, sets=replace(stages.sets, n2=stages.training_questions))
    own.distill("no-srt", changed(chosen.distill, rehearsal_weight=0.0), stages.recipe.model.path)
    row = Row("phase 2 without SRT", trained(stages, "no-srt"), ("no-srt",))
    return {**own_rows(stages, "base", "sdzero"), "no-srt": row}


def allocation_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """The same questions, more of them for phase 1: each share is a whole run of its own."""
    questions = stages.training_questions
    rows = own_rows(stages, "sdzero")
    for share in N1_SHARES:
        cut = max(1, len(questions) * share // 100)
        own = replace(stages, sets=replace(stages.sets, n1=questions[:cut], n2=questions[cut:]))
        rows[f"n1-{share}"] = whole_run(own, f"n1-{share}", f"{share}% for phase 1", chosen.distill)
    return rows


def whole_run(stages: Stages, name: str, label: str, settings: DistillSettings) -> Row:
    """Both phases under names of their own, on the stages' questions."""
    collect, srt, distill = f"{name}-collect", f"{name}-srt", f"{name}-distill"
    stages.phase_1(collect, srt)
    stages.distill(distill, settings, stages.srt_folder(name=srt), traces_of=collect)
    return Row(label, trained(stages, distill), (collect, srt, distill))


def filter_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """SRT, and phase 2 from it, on all revisions, right or wrong."""
    stages.phase_1("unfiltered-collect", "unfiltered-srt", only_verified=False)
    model = stages.srt_folder(name="unfiltered-srt")
    srt = Row("SRT, all revisions", model, ("unfiltered-collect", "unfiltered-srt"))
    stages.distill("unfiltered-distill", chosen.distill, model, traces_of="unfiltered-collect")
    stages_of = ("unfiltered-collect", "unfiltered-srt", "unfiltered-distill")
    return {
        **own_rows(stages, "srt", "sdzero"),
        "unfiltered-srt": srt,
        "unfiltered": Row("SD-Zero, all revisions", trained(stages, "unfiltered-distill"), stages_of),
    }


def divergence_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Phase 2 with every other divergence."""
    others = [kind for kind in DIVERGENCES if kind != chosen.distill.divergence]
    rows = own_rows(stages, "srt", "sdzero")
    rows["sdzero"] = replace(rows["sdzero"], label=f"SD-Zero ({chosen.distill.divergence})")
    for kind in others:
        name = f"divergence-{kind}"
        rows[name] = _distill_variant(stages, name, kind, changed(chosen.distill, divergence=kind))
    return rows


def phrase_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Phase 2 with a teacher that is told the same phrase always, or the wrong one."""
    labels = {"held": "phrase of r = 1 always", "flipped": "the other phrase"}
    rows = own_rows(stages, "srt", "sdzero")
    for value, label in labels.items():
        rows[f"phrase-{value}"] = _distill_variant(
            stages, f"phrase-{value}", label, changed(chosen.distill, phrase_for_reward=value)
        )
    return rows


def sync_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Iterative self-evolution: further rounds of phase 2, the teacher synchronised to the student before
    each; and, for comparison, a second round with the teacher as it was."""
    rows = own_rows(stages, "srt", "sdzero")
    slower = changed(chosen.distill, learning_rate=chosen.distill.learning_rate * SYNC_RATE)
    start, cost = trained(stages, "distill"), ["collect", "srt", "distill"]
    for round_ in range(2, SYNC_ROUNDS + 1):
        name = f"sync-{round_}"
        stages.distill(name, slower, start)
        start, cost = trained(stages, name), [*cost, name]
        rows[name] = Row(f"round {round_}, teacher synced", start, tuple(cost))
    # Not in the settings: a path there would tie the stage to the place where the folder is.
    stages.distill("same-teacher-2", slower, trained(stages, "distill"), teacher=stages.srt_folder())
    same = ("collect", "srt", "distill", "same-teacher-2")
    rows["same-teacher-2"] = Row("round 2, same teacher", trained(stages, "same-teacher-2"), same)
    return rows


def kinds_of(stages: Stages) -> list[str]:
    """The kinds of the training questions, by name."""
    return sorted({question.kind for question in stages.training_questions})


def check_kinds(stages: Stages) -> None:
    """Raise UserError unless there are kinds to leave out, and questions of them to score."""
    taught = set(kinds_of(stages)[::2])
    scored = {question.kind for question in getattr(stages.sets, stages.recipe.evaluate.on)}
    if not scored - taught or not scored & taught:
        raise UserError(
            "the questions are not of several kinds, so there is nothing unrelated to forget",
            "data.fields.kind",
            "name a column of kinds, or use a source that has kinds",
        )


def check_joint(stages: Stages) -> None:
    """Raise UserError unless SRT has both losses in one stage."""
    if stages.recipe.srt.schedule_of_losses != "joint":
        raise UserError(
            "the two losses have weights of their own only in the joint schedule",
            "srt.schedule_of_losses",
            "set it to joint",
        )


def forgetting_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """Trained on every other kind of question only, scored on the kinds that were left out."""
    taught = set(kinds_of(stages)[::2])

    def of(questions: list[Question], known: bool) -> list[Question]:
        return [question for question in questions if (question.kind in taught) is known]

    sets = stages.sets
    own = replace(
        stages,
        sets=QuestionSets(of(sets.n1, True), of(sets.n2, True), sets.tuning, sets.test),
    )
    whole = whole_run(own, "forgetting", "SD-Zero", chosen.distill)
    spent = stages.ledger.by_stage()
    responses = sum(spent[stage]["responses"] for stage in whole.stages if stage in spent)
    own.baseline("rft", "forgetting-rft", chosen.baselines["rft"], Budget("responses", responses))
    scored = getattr(sets, stages.recipe.evaluate.on)
    models = {
        "base": ("base", stages.recipe.model.path, ()),
        "rft": ("RFT", trained(stages, "forgetting-rft"), ("forgetting-rft",)),
        "srt": ("SRT", stages.srt_folder(name="forgetting-srt"), whole.stages[:2]),
        "sdzero": ("SD-Zero", whole.model, whole.stages),
    }
    return {
        f"{name}-{word}": Row(f"{label}, {word} kinds", model, cost, tuple(of(scored, word == "taught")))
        for word in ("other", "taught")
        for name, (label, model, cost) in models.items()
    }


def demonstrations_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """SFT on the reference answers, and on worked solutions, at the rate found for the recipe's."""
    rows = own_rows(stages, "base", "sdzero")
    for kind in ("answers", "solutions"):
        name, settings = f"sft-on-{kind}", changed(chosen.baselines["sft"], demonstrations=kind)
        stages.baseline("sft", name, settings, Budget("responses", 0))
        rows[name] = Row(f"SFT on {kind}", trained(stages, name), (name,))
    return rows


def negative_rows(stages: Stages, chosen: Chosen) -> dict[str, Row]:
    """The control without a teacher, at several rates: all are shown, none is chosen."""
    rows = own_rows(stages, "base", "sdzero")
    settings = baseline_named("negative").settings(stages.recipe)
    for factor in stages.recipe.compare.rate_factors:
        rate = settings.learning_rate * factor
        name = f"negative-x{factor:g}"
        own = changed(settings, learning_rate=rate)
        collapsed = train_guarded(stages, Method("negative", "negative"), name, own, stages.budget)
        note = ", stopped by an alarm" if collapsed else ""
        rows[name] = Row(f"negative advantage, rate {rate:g}{note}", model_at(stages, name), (name,))
    return rows


def check_negative(stages: Stages) -> None:
    """Raise UserError without the recipe's section `negative`."""
    baseline_named("negative").settings(stages.recipe)


def check_solutions_and_section(stages: Stages) -> None:
    """Raise UserError without the recipe's section `sft`, or worked solutions in the data."""
    baseline_named("sft").settings(stages.recipe)
    check_solutions(stages.training_questions, "another study")


PHASE_STUDIES = (
    Study(
        "loss",
        "Does SRT need both of its losses?",
        {"both": "57.6", "generation loss only": "56.4", "revision loss only": "52.2", "base": "49.8"},
        loss_rows,
        reference="srt",
        trains_srt=True,
        check=check_joint,
    ),
    Study(
        "no-srt",
        "Does phase 2 work without phase 1?",
        {"base": "49.8", "phase 2 without SRT": "51.4", "SD-Zero": "60.3"},
        no_srt_rows,
    ),
    Study(
        "allocation",
        "How many of the questions should go to phase 1?",
        {"40% (6K of 15K)": "60.3", "50%": "59.8", "60%": "59.1"},
        allocation_rows,
        trains_srt=True,
    ),
    Study(
        "filter",
        "Must revisions be verified before SRT trains on them?",
        {},
        filter_rows,
        trains_srt=True,
    ),
    Study(
        "divergence",
        "Which direction of the divergence?",
        {"reverse": "60.3"},
        divergence_rows,
    ),
    Study(
        "sync",
        "Does phase 2 go on improving when the teacher is synchronised to the student?",
        {"gain of iterative self-evolution": "at least +3 points, no plateau seen"},
        sync_rows,
    ),
    Study(
        "phrase",
        "Does the reward reach the student through the control phrase?",
        {},
        phrase_rows,
    ),
    Study(
        "demonstrations",
        "What if there were worked solutions to learn from?",
        {"base": "49.8", "SFT on R1's responses": "50.0", "SD-Zero": "60.3"},
        demonstrations_rows,
        check=check_solutions_and_section,
    ),
    Study(
        "negative",
        "Is it enough to push wrong responses down?",
        {},
        negative_rows,
        check=check_negative,
    ),
    Study(
        "forgetting",
        "What happens to questions of kinds that were not trained on?",
        {},
        forgetting_rows,
        reference="base-other",
        trains_srt=True,
        check=check_kinds,
    ),
)
