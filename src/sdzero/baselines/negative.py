"""A control: policy gradient with a constant negative advantage on wrong responses (arXiv 2608.31046).

No teacher, and no positive signal: what SD-Zero gains over it cannot come from pushing wrong responses
down. See `sdzero.method.objectives.ConstantAdvantage`; the loss has no lower bound, so a training that is
too long or too fast ruins the model.
"""

from sdzero.baselines.on_policy import train_on_policy
from sdzero.method.objectives import ConstantAdvantage
from sdzero.recipe_baselines import NegativeSettings
from sdzero.run_context import Budget, RunContext


def train_negative(context: RunContext, name: str, settings: NegativeSettings, budget: Budget) -> None:
    """Train the base model within the budget away from its wrong responses; kept in `name`.

    Raises UserError for a budget that does not pay for one step.
    """
    if context.run.is_done(name):
        return
    context.report(
        f"{name}: {budget} on {len(context.training_questions)} questions,"
        f" advantage {settings.advantage:g} on wrong responses"
    )
    train_on_policy(context, name, settings, budget, ConstantAdvantage(settings.advantage), None)
