"""A run on the embedded model for the baselines' tests, without its command and without processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sdzero.engines import transformers_engines
from sdzero.ledger import Ledger
from sdzero.method.roles import Roles
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.questions.splits import QuestionSets
from sdzero.recipe import Recipe
from sdzero.run_context import RunContext
from sdzero.run_dir import RunDir
from sdzero.tiny.arithmetic import post_training_problems
from sdzero.verify.math import MathVerifier

QUESTIONS = [Question(p.text, p.text, str(p.answer), p.kind) for p in post_training_problems()[:48]]
OPTIMIZER: dict[str, Any] = {"learning_rate": 3e-4, "batch_size": 4, "micro_batch_size": 4}
ON_POLICY: dict[str, Any] = OPTIMIZER | {"max_new_tokens": 64, "checkpoint_every": 2}


def make_recipe(**sections: Any) -> Recipe:
    values = {
        "name": "test",
        "seed": 3,
        "model": {"path": "tiny", "device": "cpu"},
        "data": {"n1": 1, "n2": 1, "test": 1},
        "collect": {"max_new_tokens": 64},
        "srt": OPTIMIZER,
        "distill": OPTIMIZER | {"max_new_tokens": 64},
        "rft": OPTIMIZER,
        "evaluate": {"max_new_tokens": 64},
    }
    return Recipe.model_validate(values | sections)


@contextmanager
def small_run(
    folder: Path, n1: list[Question], n2: list[Question], grade: Any = None, **sections: Any
) -> Iterator[RunContext]:
    """The context of a run with these questions; the verifier grades in this process."""
    recipe = make_recipe(**sections)
    tokenizer = load_tokenizer("tiny")
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    verifier = MathVerifier()
    run = RunDir.open(folder, recipe)
    try:
        yield RunContext(
            recipe=recipe,
            run=run,
            ledger=Ledger(run.path("ledger.jsonl")),
            tokenizer=tokenizer,
            roles=roles,
            sets=QuestionSets(n1=n1, n2=n2, tuning=[], test=[]),
            grade=grade or (lambda items: [verifier.grade(q, text) for q, text in items]),
            report=lambda line: None,
            progress=lambda what, done, total: None,
            make_engine=transformers_engines(recipe, tokenizer),
        )
    finally:
        run.close()


def rollouts(context: RunContext, stage: str) -> list[list[Any]]:
    """The stored responses, step by step."""
    files = sorted(context.run.path(f"{stage}/rollouts").glob("step-*.jsonl"))
    return [context.run.read_jsonl(f"{stage}/rollouts/{file.name}") for file in files]


class Killed(BaseException):
    """Ends a training as a kill does."""


def killed(*_: Any, **__: Any) -> None:
    raise Killed
