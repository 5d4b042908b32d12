"""The loop that SDFT and the control with a negative advantage share with SD-Zero's phase 2.

From the base model, one response a question over all training questions, epoch after epoch reshuffled,
`batch_size` a step, until the budget is spent (`sdzero.method.distill`, with another objective).
"""

from typing import Any

from transformers import PreTrainedModel

from sdzero.baselines.spending import TokenSpending, schedule_by_spending, steps_within
from sdzero.errors import UserError
from sdzero.method.checkpoints import last_complete_checkpoint
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.distill_config import on_policy_config
from sdzero.method.objectives import Objective
from sdzero.method.teacher import Teacher
from sdzero.models import pick_device
from sdzero.recipe_baselines import OnPolicySettings
from sdzero.run_context import Budget, RunContext


def train_on_policy(
    context: RunContext,
    name: str,
    settings: OnPolicySettings,
    budget: Budget,
    objective: Objective,
    teacher: Teacher | None,
    model: PreTrainedModel | None = None,
) -> None:
    """Train the base model (or `model`, which is it) within the budget, and keep it in `name`.

    Raises UserError for a budget that does not pay for one step.
    """
    questions, recipe = context.training_questions, context.recipe
    by_tokens, log = budget.match == "tokens", context.train_log(name)
    spending = TokenSpending(context.run, name, budget.amount)
    if by_tokens:
        # Each response has a token at least, so there cannot be more steps than tokens.
        max_steps = budget.amount
        if max_steps < 1:
            raise UserError("a budget of 0 tokens pays for nothing", "budget.tokens", "set it above 0")
    else:
        max_steps = steps_within(budget.amount, len(questions), settings.batch_size)

    def report(values: dict[str, Any]) -> None:
        if by_tokens:
            values = values | {"max_steps": spending.expected_steps(int(values["step"]))}
        log(values)

    if model is None:
        model = context.load_to_train(recipe.model.path)
    sampler = context.sampler(model)
    prompts = ((q, context.roles.generator_prompt(q)) for q in questions)
    sampler.check_fits(prompts, settings.max_new_tokens)
    checkpoints = context.run.path(f"{name}/checkpoints")
    config = on_policy_config(
        settings,
        checkpoints,
        max_steps=max_steps,
        seed=recipe.seed,
        gradient_checkpointing=recipe.model.gradient_checkpointing,
        use_cpu=pick_device(recipe.model.device).type == "cpu",
    )
    trainer = SelfDistillationTrainer(
        model,
        teacher,
        config,
        questions,
        sampler,
        context.tokenizer,
        report=report,
        checkpoint_every=settings.checkpoint_every,
        stage=name,
        objective=objective,
        make_schedule=(
            lambda optimizer: schedule_by_spending(
                optimizer, spending, settings.schedule, settings.warmup_steps, settings.warmup_ratio
            )
        )
        if by_tokens
        else None,
        is_spent=spending.is_spent if by_tokens else None,
        alarms=context.alarms,
    )
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
    facts: dict[str, Any] = {"steps": trainer.state.global_step, **trainer.counted}
    if teacher is not None:
        facts |= {"teacher": teacher.fingerprint, "syncs": teacher.sync_count}
    context.keep(name, model, facts)
