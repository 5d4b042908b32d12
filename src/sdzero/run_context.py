"""What the stages and the baselines of one run share: its folder, questions, verifier, models, budget."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdzero.adapters import (
    attach_adapter,
    has_adapter,
    is_adapter_folder,
    lora_config,
    merge_adapter,
    refuse_sharding,
)
from sdzero.engines import EngineMaker
from sdzero.errors import UserError
from sdzero.kept_models import check_kept_model, sums_of_model
from sdzero.ledger import Ledger
from sdzero.method.graded import GradedSampler
from sdzero.method.grading import Grade
from sdzero.method.roles import Roles, WeightedSequence
from sdzero.method.srt import train_weighted
from sdzero.models import absolute_path, load_model, load_to_train_on, save_model
from sdzero.peak_memory import peak_memory_bytes
from sdzero.questions.question import Question
from sdzero.questions.splits import QuestionSets
from sdzero.recipe import AlarmSettings, Recipe
from sdzero.recipe_base import OptimizerSettings
from sdzero.rollout.engine import seed_of
from sdzero.run_dir import RunDir
from sdzero.run_provenance import note_model
from sdzero.sharded import whole_state
from sdzero.step_log import StepLog
from sdzero.tracking import Trackers

Report = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """What a method may sample for training: `amount` responses, or `amount` sampled tokens."""

    match: Literal["responses", "tokens"]
    amount: int

    def __str__(self) -> str:
        return f"{self.amount:,} {'responses' if self.match == 'responses' else 'sampled tokens'}"


@dataclass
class RunContext:
    """One run's surroundings. Stages read the files of the stage before and leave their own."""

    recipe: Recipe
    run: RunDir
    ledger: Ledger
    tokenizer: PreTrainedTokenizerBase
    roles: Roles
    sets: QuestionSets
    grade: Grade
    report: Report
    progress: Callable[[str, int, int], None]
    make_engine: EngineMaker
    truth: Mapping[str, Question] = field(default_factory=dict)
    """In label-free mode, the training questions with their true answers, by id: for the report only."""
    label_stage: str = "labels"
    trackers: Trackers = field(default_factory=Trackers)
    _checked: set[str] = field(default_factory=set)
    """Models of the run whose files were found to be as they were written."""
    provenance_parts: dict[str, Any] = field(default_factory=dict)
    """What the records of several models share: sums of the data, and of each parent."""

    @property
    def training_questions(self) -> list[Question]:
        """What every method is trained on: N1 and N2."""
        return [*self.sets.n1, *self.sets.n2]

    @property
    def alarms(self) -> AlarmSettings | None:
        """When training is stopped; None if the recipe has the alarms off."""
        return self.recipe.alarms if self.recipe.alarms.enabled else None

    def sampler(self, model: PreTrainedModel) -> GradedSampler:
        """A sampler of graded responses with `model`'s weights."""
        engine = self.make_engine(model, self.roles)
        return GradedSampler(engine, self.roles, self.grade, self.run, self.ledger, self.progress)

    def check_kept(self, path: str | Path) -> None:
        """Raise UserError if `path` is a model of this run that was damaged since; each is looked at once."""
        if str(path) not in self._checked:
            check_kept_model(self.run, path)
            self._checked.add(str(path))

    def load(self, path: str | Path, device: torch.device | None = None) -> PreTrainedModel:
        """Load a model with the recipe's dtype, on the recipe's device or another one."""
        self.check_kept(path)
        return load_model(str(path), self.recipe.model, device)

    def trains_on_adapter(self, path: str | Path) -> bool:
        """Whether a stage that starts at this folder trains the adapter in it, in place of a new one."""
        lora, quantization = self.recipe.lora, self.recipe.model.quantization
        return lora is not None and lora.keeps_adapter(quantization) and is_adapter_folder(path)

    def load_to_train(self, path: str | Path) -> PreTrainedModel:
        """Load a model to be trained: with LoRA it has an adapter, and only that is trained."""
        if self.recipe.lora is None:
            return self.load(path)
        refuse_sharding(os.environ)
        if self.trains_on_adapter(path):
            self.check_kept(path)
            return load_to_train_on(str(path), self.recipe.model, self.recipe.lora)
        model = self.load(path)
        self.put_adapter(model, path)
        return model

    def put_adapter(self, model: PreTrainedModel, path: str | Path) -> None:
        """Put the recipe's LoRA into a model that was loaded from `path`."""
        refuse_sharding(os.environ)
        assert self.recipe.lora is not None, "for recipes with LoRA"
        base = absolute_path(str(path))
        attach_adapter(model, lora_config(self.recipe.lora), seed_of(self.recipe.seed, "lora"), base)

    def needs(self, folder: str | Path, stage: str) -> None:
        """Raise UserError if what the stage before makes is not there."""
        if not Path(folder).exists():
            raise UserError(
                f"this stage needs what `{stage}` makes", str(folder), f"run `sdzero {stage}` first"
            )

    def budget(self, match: Literal["responses", "tokens"] | None = None, after: str = "distill") -> Budget:
        """What a baseline may sample: the recipe's amount, or what SD-Zero spent in this run.

        `after` is the stage that was SD-Zero's phase 2. Labels are no part of it: every method trains on
        them and has them in its cost (`Method.stages`), so what each may sample beside them is equal. Raises
        UserError if neither amount is known.
        """
        own = self.recipe.budget
        match = match or own.match
        amount = own.responses if match == "responses" else own.tokens
        if amount is None:
            if self.recipe.srt.checkpoint:
                raise UserError(
                    "the budget is what SD-Zero samples, and what srt.checkpoint took is not known here",
                    "srt.checkpoint",
                    f"set budget.{match}",
                )
            spent = self.ledger.by_stage()
            if not self.run.is_done(after):
                raise UserError(
                    "the budget is what SD-Zero samples, and it has not run here",
                    str(self.run.path(after)),
                    f"run SD-Zero in this folder first, or set budget.{match}",
                )
            key = "responses" if match == "responses" else "sampled_tokens"
            amount = sum(int(spent.get(stage, {}).get(key, 0)) for stage in ("collect", after))
        return Budget(match, amount)

    def train_log(self, stage: str, part: int = 0) -> Callable[[dict[str, Any]], None]:
        """A function that keeps each step's numbers in the stage's log and shows the progress."""
        step_log = StepLog(self.run, f"{stage}/log.jsonl", part)

        def log(values: dict[str, Any]) -> None:
            step, last = int(values.get("step", 0)), int(values.get("max_steps", 0))
            step_log.append(values | {"peak_memory_bytes": peak_memory_bytes()})
            if last:
                self.progress(f"{stage}/steps", step, last)

        return self.trackers.wrapped(stage, part, log)

    def train_on(self, name: str, stages: Sequence[Sequence[WeightedSequence]], settings: Any) -> None:
        """Train the base model on weighted sequences, stage by stage, and keep the model in `name`.

        The rounds of a stage (`srt/round-1`) are one stage in the ledger.
        """
        model = self.load_to_train(self.recipe.model.path)
        for number, sequences in enumerate(stages):
            weights = whole_state(model)
            if weights is not None:  # sharded by the stage before: the next one shards it anew
                model = self.load(self.recipe.model.path)
                model.load_state_dict(weights)
            train_weighted(
                model,
                self.tokenizer,
                sequences,
                settings,
                epochs=settings.epochs,
                checkpoint_every=settings.checkpoint_every,
                output_dir=self.run.path(f"{name}/checkpoints-{number}"),
                seed=self.recipe.seed,
                gradient_checkpointing=self.recipe.model.gradient_checkpointing,
                log=self.train_log(name, number),
                ledger=self.ledger,
                stage=name.partition("/")[0],
                key=f"{name}/{number}",
                alarms=self.alarms,
            )
        self.keep(name, model, {"sequences": sum(map(len, stages))})

    def claim(self, name: str, settings: OptimizerSettings) -> None:
        """Note with which settings a stage is trained; a stage trained with others cannot be gone on with.

        Raises UserError that names the settings that differ.
        """
        file, own = f"{name}/settings.json", settings.model_dump(mode="json")
        if not self.run.path(file).exists():
            self.run.write_json(file, own)
            return
        stored = self.run.read_json(file)
        fields = type(settings).model_fields
        # Keys that came since with what was done before as their default.
        new = {key for key in own if key not in stored and own[key] == fields[key].default}
        differing = [key for key in own if key not in new and stored.get(key) != own[key]]
        if differing or set(stored) != set(own) - new:
            shown = ", ".join(f"{key}: {stored.get(key)!r} there, {own[key]!r} now" for key in differing)
            raise UserError(
                f"`{name}` was trained with other settings ({shown})",
                str(self.run.path(file)),
                "use those settings again, or choose another --output",
            )

    def keep(
        self, name: str, model: PreTrainedModel, facts: dict[str, Any], parent: str | Path | None = None
    ) -> None:
        """Save a finished stage's model, with the record of where it came from (`parent`: the model that it
        was trained from, if not the base model). Optimizer states are of no use once it is there.

        A model with an adapter is kept as `lora.keep` says; if merged, so is `model` itself, and the adapter
        is kept beside, in `name/adapter`.
        """
        if has_adapter(model):
            assert self.recipe.lora is not None, "only a recipe with LoRA puts adapters in"
            if not self.recipe.lora.keeps_adapter(self.recipe.model.quantization):
                save_model(model, self.tokenizer, self.run.path(f"{name}/adapter"))
                merge_adapter(model)
        save_model(model, self.tokenizer, self.run.path(f"{name}/model"))
        sums = sums_of_model(self.run, name)
        note_model(self, name, parent or self.recipe.model.path, sums)
        self.run.mark_done(name, facts, sums)
        self.run.remove_folders(name, "checkpoints*")
