"""SFT: fine-tuning on given demonstrations, one a question; it samples nothing.

A demonstration is the data's worked solution, or its reference answer in a format. Weight is 1 on every
token of it, end token included (`sdzero.method.srt.train_weighted`, a subclass of TRL's SFTTrainer).
"""

from collections.abc import Sequence

from sdzero.errors import UserError
from sdzero.method.roles import Roles, WeightedSequence
from sdzero.questions.question import Question
from sdzero.recipe_baselines import SftSettings
from sdzero.run_context import Budget, RunContext


def train_sft(context: RunContext, name: str, settings: SftSettings, budget: Budget) -> None:
    """Train the base model on one demonstration of each training question; kept in `name`.

    Nothing of the budget is spent: the length of the training is `settings.epochs`.
    """
    if context.run.is_done(name):
        return
    sequences = sft_sequences(context.training_questions, context.roles, settings)
    context.report(f"{name}: {len(sequences)} demonstrations ({settings.demonstrations}), 0 responses")
    context.train_on(name, [sequences], settings)


def sft_sequences(
    questions: Sequence[Question], roles: Roles, settings: SftSettings
) -> list[WeightedSequence]:
    """Training sequences in the order of the questions.

    Raises UserError if solutions are asked for and some questions have none.
    """
    if settings.demonstrations == "solutions":
        check_solutions(questions, "sft.demonstrations=answers")
    return [
        roles.response_sequence(
            roles.generator_prompt(question),
            roles.demonstration_ids(demonstration(question, settings), f"question {question.id}"),
        )
        for question in questions
    ]


def demonstration(question: Question, settings: SftSettings) -> str:
    """The text that is trained on."""
    if settings.demonstrations == "solutions":
        return question.solution
    return settings.answer_format.format(answer=question.answer)


def check_solutions(questions: Sequence[Question], instead: str) -> None:
    """Raise UserError if questions have no worked solution; `instead` is what else may be set."""
    without = [question.id for question in questions if not question.solution.strip()]
    if without:
        raise UserError(
            f"{len(without)} of the {len(questions)} training questions have no worked solution",
            f"question {without[0]} is the first",
            f"name the data's column in data.fields.solution, set {instead} (not for code data sets), or"
            " leave the method out of --methods",
        )
