"""Label-free training in a run: its labels before phase 1, and at the end what they were worth."""

from typing import Any

from sdzero.method.labels import STAGE, label_questions, labelled_sets, rewarded, true_rewards
from sdzero.run_context import RunContext


def label_run(context: RunContext) -> None:
    """Have N1 and N2 labelled by the base model's majority, if the recipe says so.

    Labels are made once, and kept; the questions with their own answers stay in `context.answered`.
    """
    settings = context.recipe.labels
    if settings.source == "reference":
        return
    context.answered = {question.id: question for question in context.training_questions}
    if not context.run.is_done(STAGE):
        context.report(f"labels: {settings.samples} responses to each of {len(context.answered):,} questions")
        found = label_questions(
            context.training_questions,
            context.sampler(context.load(context.recipe.model.path)),
            context.grade,
            settings,
            context.recipe.collect,
            context.recipe.seed,
        )
        context.run.mark_done(STAGE, found)
        right = "unknown" if found["right"] is None else f"{found['right']:.1%}"
        context.report(
            f"  {found['used']:,} of {found['questions']:,} questions have a label, agreement"
            f" {found['mean_agreement']:.1%}, right: {right} (training does not see this)"
        )
    context.sets = labelled_sets(context.sets, context.run, settings)


def label_facts(context: RunContext) -> dict[str, Any]:
    """What the labels were worth: their statistics, and the true reward beside the labels'."""
    rewards = true_rewards(context.run, context.roles, context.grade, context.answered, rewarded())
    for name, own in rewards.items():
        context.report(
            f"  reward, {name}: {own['label_reward']:.1%} by the labels, {own['true_reward']:.1%} true"
        )
    return {**context.run.stage_info(STAGE), "rewards": rewards}
