"""SDFT: self-distillation from a teacher that reads the question with a reference (arXiv 2601.19897).

The student samples y on the question; the teacher, the same base model, reads the question with the
data's answer or worked solution below it, and then y; the divergence over the tokens of y is minimised
in the student. Next to SD-Zero it has the reference in the teacher's context, and no reward there.

On one batch the loss is that of TRL's experimental SDFT trainer with `full_logits`, `distillation_alpha`
1.0 (`divergence: reverse`) and no importance clipping, if `normalize` is `sequences`; the default here,
`tokens`, is the mean over all target tokens of the step, as in phase 2. A response that the verifier
failed on is left out, though its reward is not used: so all methods leave out the same.
"""

from transformers import PreTrainedModel

from sdzero.baselines.on_policy import train_on_policy
from sdzero.baselines.sft import check_solutions
from sdzero.lora_start import student_and_teacher
from sdzero.method.objectives import ReferenceDivergence
from sdzero.method.teacher import Teacher
from sdzero.recipe_baselines import SdftSettings
from sdzero.run_context import Budget, RunContext


def train_sdft(context: RunContext, name: str, settings: SdftSettings, budget: Budget) -> None:
    """Train the base model within the budget against itself with the reference; kept in `name`.

    Raises UserError if solutions are asked for and some questions have none, and for a budget that does
    not pay for one step. A teacher's context that is over the model's is dropped and counted.
    """
    if context.run.is_done(name):
        return
    if settings.reference == "solution":
        check_solutions(context.training_questions, "sdft.reference=answer")
    base = context.recipe.model.path
    model: PreTrainedModel | None = None
    if context.recipe.lora is None:
        teacher = Teacher(context.load(base), base)
    else:
        model, teacher = student_and_teacher(context, base)
    context.report(
        f"{name}: {budget} on {len(context.training_questions)} questions, {settings.divergence} divergence,"
        f" full vocabulary, temperature 1, teacher {teacher.fingerprint} reads the {settings.reference}"
        f" (sync: {settings.sync})"
    )
    objective = ReferenceDivergence(
        settings.divergence, settings.chunk_tokens, settings.template, settings.reference
    )
    train_on_policy(context, name, settings, budget, objective, teacher, model)
