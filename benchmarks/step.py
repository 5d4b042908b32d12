"""Our step of phase 2, by the package's own trainer, engine, ledger and run folder: one step a turn."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from shapes import Shape, questions_of, roles_of
from split import Split
from timing import Seconds, StepClock
from transformers import AutoTokenizer, PreTrainedModel

from sdzero.engines import transformers_engines
from sdzero.ledger import Ledger
from sdzero.method.checkpoints import DeterministicCheckpoints
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.distill_config import distill_config
from sdzero.method.graded import GradedSampler
from sdzero.method.grading import Grade
from sdzero.method.objectives import Objective
from sdzero.method.step_rollouts import rollout_file
from sdzero.method.teacher import Teacher
from sdzero.models import DTYPES, load_model, pick_device
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.rollout.engine import Request, Response, Sampling
from sdzero.run_dir import RunDir
from sdzero.verify.pool import pool_of
from sdzero.verify.verdict import Verdict

Recorded = Mapping[tuple[int, ...], Sequence[int]]
"""Responses by prompt."""


class RecordedEngine:
    """A rollout engine that has its responses already: for the update alone."""

    weight_version = 0
    max_context: int | None = None
    samples_elsewhere = False

    def __init__(self, recorded: Recorded) -> None:
        self._recorded = recorded

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        """Nothing to do: it does not sample."""

    def read_weights(self) -> None:
        """Nothing to do."""

    def rest(self) -> None:
        """Nothing to do."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """The recorded responses, which have no end."""
        return [Response(tuple(self._recorded[request.prompt_ids]), "length") for request in requests]


def _nothing_to_grade(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Recorded responses have no end, so they are wrong without being read."""
    raise AssertionError(f"{len(items)} responses to grade")


def recipe_of(
    shape: Shape,
    folder: Path,
    distill: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe of the step: the defaults, but for sizes and a temperature of 1."""
    optimizer = {"learning_rate": 1e-6, "batch_size": shape.batch, "micro_batch_size": shape.batch}
    sampling = {"max_new_tokens": shape.response_tokens}
    phase_2 = {"schedule": "constant", "temperature": 1.0} | optimizer | sampling | dict(distill or {})
    return Recipe.model_validate(
        {
            "name": "bench",
            "model": {"path": str(folder), "dtype": "float32", "device": "cpu"} | dict(model or {}),
            "data": {"n1": 1, "n2": shape.batch, "test": 1},
            "collect": sampling,
            "srt": optimizer,
            "distill": phase_2,
            "rft": optimizer,
            "evaluate": sampling,
        }
    )


class OurStep:
    """A trainer of phase 2 on one batch of questions; student and teacher start at the model in `folder`.

    With `recorded` responses nothing is sampled. `pair` is another student and teacher. Checkpoints are not
    saved: a step is not one.
    """

    def __init__(
        self,
        shape: Shape,
        folder: Path,
        run: RunDir,
        recipe: Recipe,
        questions: Sequence[Question] | None = None,
        recorded: Recorded | None = None,
        objective: Objective | None = None,
        grade: Grade | None = None,
        pair: tuple[PreTrainedModel, Teacher] | None = None,
    ) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.roles = roles_of(self.tokenizer)
        self.questions = questions_of(shape, self.roles) if questions is None else list(questions)
        device = pick_device(recipe.model.device)
        if pair is None:
            dtype, attention = DTYPES[recipe.model.dtype], recipe.model.attention
            pair = load_model(str(folder), recipe.model), Teacher.load(folder, dtype, device, attention)
        self.model, teacher = pair
        self.run = run
        own_engine = transformers_engines(recipe, self.tokenizer)(self.model, self.roles)
        engine = own_engine if recorded is None else RecordedEngine(recorded)
        ledger = Ledger(run.path("ledger.jsonl"))
        sampler = GradedSampler(engine, self.roles, grade or _nothing_to_grade, run, ledger)
        config = distill_config(
            recipe.distill,
            run.path("checkpoints"),
            seed=0,
            gradient_checkpointing=recipe.model.gradient_checkpointing,
            use_cpu=device.type == "cpu",
        )
        config.max_steps = 1
        self.logged: list[dict[str, Any]] = []
        self.trainer = SelfDistillationTrainer(
            self.model,
            teacher,
            config,
            self.questions,
            sampler,
            self.tokenizer,
            report=self.logged.append,
            objective=objective,
        )
        self.trainer.remove_callback(DeterministicCheckpoints)
        self.split = Split(self.trainer)
        self.clock = StepClock()
        self.trainer.add_callback(self.clock)

    def turn(self) -> Seconds:
        """One step: whole, `rollout` (sampling, grading and keeping responses), `update` (all the rest), and
        the parts of `split`."""
        self.run.path(rollout_file(self.trainer.stage, 0)).unlink(missing_ok=True)
        self.trainer.train()
        step = self.clock.seconds
        assert step is not None, "a step was made"
        # Only the first process logs.
        rollout = self.logged[-1]["rollout_seconds"] if self.logged else 0.0
        return {"step": step, "rollout": rollout, "update": step - rollout} | self.split.parts(step, rollout)

    @property
    def loss(self) -> float:
        """Of the last step, before its update."""
        return float(self.logged[-1]["loss"])


@contextmanager
def our_step(
    shape: Shape,
    folder: Path,
    workplace: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    **more: Any,
) -> Iterator[OurStep]:
    """An `OurStep` in a run folder of its own below `workplace`.

    `settings` are those of phase 2, `model` those of the model, both beside the benchmark's own.
    """
    recipe = recipe_of(shape, folder, settings, model)
    with ExitStack() as stack:
        if more.get("recorded") is None:
            more["grade"] = stack.enter_context(pool_of(recipe.verifier)).grade
        run = RunDir.open(workplace / f"run-{len(list(workplace.glob('run-*')))}", recipe)
        stack.callback(run.close)
        yield OurStep(shape, folder, run, recipe, **more)
