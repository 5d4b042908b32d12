"""One trainer of phase 2 in a folder of its own, on the embedded model, for tests."""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from sdzero import tiny
from sdzero.adapters import attach_adapter, lora_config
from sdzero.ledger import Ledger
from sdzero.method.adapter_teacher import AdapterTeacher
from sdzero.method.checkpoints import last_complete_checkpoint
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.distill_config import SAME_NAME, SelfDistillationConfig
from sdzero.method.graded import GradedSampler
from sdzero.method.roles import DistillationPair, Roles, WeightedSequence
from sdzero.method.sharded_teacher import ShardedTeacher
from sdzero.method.streamed_teacher import StreamedTeacher
from sdzero.method.teacher import Teacher
from sdzero.method.training import training_arguments
from sdzero.packed_attention import enable_packing
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings, Recipe
from sdzero.recipe_distill import DistillSettings
from sdzero.recipe_lora import LoraSettings
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.run_dir import RunDir
from sdzero.tiny.arithmetic import post_training_problems
from sdzero.verify.math import MathVerifier

QUESTIONS = [Question(p.text, p.text, str(p.answer), p.kind) for p in post_training_problems()[:48]]


DISTILL = {"temperature": 0.7, "max_new_tokens": 64, "chunk_tokens": 64, "checkpoint_every": 2}


SAMPLING = {"max_new_tokens": 64, "chunk_tokens": 64, "checkpoint_every": 2}


def make_recipe(**distill: Any) -> Recipe:
    optimizer = {"learning_rate": 1e-3, "batch_size": 8, "micro_batch_size": 8}
    return Recipe.model_validate(
        {
            "name": "test",
            "data": {"n1": 1, "n2": 1, "test": 1},
            "collect": {"max_new_tokens": 64},
            "srt": optimizer,
            "distill": optimizer
            | {"max_new_tokens": 64, "chunk_tokens": 64, "checkpoint_every": 2}
            | distill,
            "rft": optimizer,
            "evaluate": {"max_new_tokens": 64},
        }
    )


class Killed(BaseException):
    """Stands for the end of the process."""


def scored_every(steps: int) -> dict[str, Any]:
    """Arguments of a trainer that scores the tuning set so often, and takes the best model at the end."""
    return {
        "eval_strategy": "steps",
        "eval_steps": steps,
        "save_steps": steps,
        "metric_for_best_model": "avg",
        "greater_is_better": True,
        "load_best_model_at_end": True,
    }


class Bench:
    """One trainer in a folder of its own, on the embedded model."""

    def __init__(
        self,
        folder: Path,
        questions: list[Question] = QUESTIONS,
        teacher: PreTrainedModel | None = None,
        dtype: torch.dtype = torch.float32,
        max_steps: int = -1,
        grade: Any = None,
        rehearsal: bool = False,
        tuning_score: Any = None,
        extra: dict[str, Any] | None = None,
        packed: bool = False,
        lora: LoraSettings | None = None,
        **distill: Any,
    ) -> None:
        recipe = make_recipe(**distill)
        settings: DistillSettings = recipe.distill
        model_folder = tiny.model_folder()
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
        if lora is not None:
            attach_adapter(self.model, lora_config(lora), seed=1, base=str(model_folder))
        roles = Roles(self.tokenizer, PhraseSettings(), ChatSettings())
        engine = TransformersEngine(self.model, [roles.end_token_id], self.tokenizer.pad_token_id)
        verifier = MathVerifier()
        self.run = RunDir.open(folder, recipe)
        self.ledger = Ledger(self.run.path("ledger.jsonl"))
        grade = grade or (lambda items: [verifier.grade(q, text) for q, text in items])
        self.sampler = GradedSampler(engine, roles, grade, self.run, self.ledger)
        self.logged: list[dict[str, Any]] = []
        self.checkpoints = self.run.path("distill/checkpoints")
        arguments = training_arguments(
            settings,
            self.checkpoints,
            epochs=settings.epochs,
            checkpoint_every=settings.checkpoint_every,
            seed=recipe.seed,
            gradient_checkpointing=False,
            use_cpu=True,
        )
        arguments |= {"max_steps": max_steps} | (extra or {})
        own = {name: getattr(settings, name) for name in SAME_NAME}
        config = SelfDistillationConfig(**arguments, **own, sync_every=settings.sync_every or 0)
        placement = settings.teacher_placement
        if teacher is not None:
            self.teacher = placed(teacher, "given", placement)
        elif lora is not None and lora.teacher == "shared":
            self.teacher = AdapterTeacher.beside(self.model, str(model_folder))
        else:
            loaded = Teacher.load(model_folder, dtype, "cpu")
            self.teacher = loaded if placement == "device" else placed(loaded.model, "given", placement)
        if packed:
            enable_packing(self.model)
            enable_packing(self.teacher.model)
        self.trainer = SelfDistillationTrainer(
            self.model,
            self.teacher,
            config,
            questions,
            self.sampler,
            self.tokenizer,
            rehearsal=make_rehearsal(roles) if rehearsal else (),
            tuning_score=tuning_score,
            report=self.logged.append,
            checkpoint_every=settings.checkpoint_every,
            early_stop_patience=settings.early_stop_patience,
        )

    def train(self) -> list[dict[str, Any]]:
        self.trainer.train(resume_from_checkpoint=last_complete_checkpoint(self.checkpoints))
        self.run.close()
        return self.logged

    def train_until(self, step: int) -> None:
        """Train, and die when so many steps are done and the responses of the next one are there."""
        compute = self.trainer.compute_loss

        def dying(*arguments: Any, **keywords: Any) -> Any:
            if self.trainer.state.global_step == step:
                raise Killed
            return compute(*arguments, **keywords)

        self.trainer.compute_loss = dying
        with pytest.raises(Killed):
            self.train()
        self.run.close()


def placed(model: PreTrainedModel, source: str, placement: str) -> Teacher:
    """The teacher where `distill.teacher_placement` says."""
    if placement == "cpu":
        return StreamedTeacher(model, source, "cpu")
    return ShardedTeacher(model, source) if placement == "sharded" else Teacher(model, source)


def make_rehearsal(roles: Roles) -> list[WeightedSequence]:
    rows = []
    for question in QUESTIONS[:10]:
        prompt = roles.generator_prompt(question)
        answer = roles._tokenizer.encode(f"\\boxed{{{question.answer}}}", add_special_tokens=False)
        rows.append(roles.revision_sequence(prompt, answer, 1, [*answer, roles.end_token_id]))
    return rows


def perturbed(model: PreTrainedModel, size: float = 0.3) -> PreTrainedModel:
    """Another teacher, so that there is something to distil."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.mul_(1 + size * noise.to(parameter.dtype))
    return other


def dense_log_probabilities(model: PreTrainedModel, ids: Sequence[int], positions: Sequence[int]) -> Any:
    """[T, V]: log-probabilities at positions of one sequence."""
    return model(torch.tensor([list(ids)])).logits[0].log_softmax(-1)[list(positions)]


def stored_pairs(bench: Bench, step: int = 0) -> list[tuple[DistillationPair, int]]:
    """The contexts of a step's stored responses, with their rewards."""
    prompts = {q.id: bench.sampler.roles.generator_prompt(q) for q in bench.trainer.questions}
    lines = bench.run.path(f"distill/rollouts/step-{step:06d}.jsonl").read_text().splitlines()
    found = []
    for row in map(json.loads, lines):
        reward = int(row["outcome"] == "correct")
        pair = bench.sampler.roles.distillation_pair(prompts[row["question"]], row["token_ids"], reward)
        found.append((pair, reward))
    return found
