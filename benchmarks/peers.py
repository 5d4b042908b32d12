"""TRL's trainers on the same model, tokens and divergence: one step a turn.

SDFT and SDPO (experimental): the whole distributions (`full_logits`), reverse KL (`distillation_alpha` 1.0),
no importance clip, teacher frozen at the first weights, one response a prompt. Their teacher context is
replaced, through the attribute that they have for it, by SD-Zero's: x + y + P_r + y. Distillation (stable):
the chunked kernel, `beta` 1.0; its teacher reads what the student reads, so it is compared with our trainer
doing the same.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset
from shapes import NEVER_RIGHT, Shape, questions_of, roles_of
from timing import Seconds, StepClock
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.sdft import SDFTConfig, SDFTTrainer
from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

from sdzero.method.roles import Roles

Peer = Literal["sdft", "sdpo", "distillation"]


class ReviserContext:
    """Builds the Reviser's context for TRL's trainers, with the phrase of a wrong response."""

    def __init__(self, trainer: Any, roles: Roles) -> None:
        self._trainer, self._roles = trainer, roles
        self.last_metrics: dict[str, float] = {}

    def of_responses(
        self, prompts: list[Any], completion_ids: torch.Tensor, completion_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Padded on the left up to the response, as TRL pads."""
        rows = []
        for prompt_ids, ids, mask in zip(
            self._trainer._tokenize_prompts(prompts), completion_ids, completion_mask, strict=True
        ):
            response = ids[mask.bool()].tolist()
            rows.append(self._roles.reviser_prompt(prompt_ids, response, 0))
        width, pad = max(map(len, rows)), self._trainer._tokenizer.pad_token_id
        before = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
        real = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {
            "teacher_input_ids": torch.cat([before, completion_ids], dim=1),
            "teacher_attention_mask": torch.cat([real, completion_mask], dim=1),
        }


class ForSdft(ReviserContext):
    """As SDFT's trainer calls it."""

    def build(
        self, prompts: list[Any], contexts: Any, completion_ids: torch.Tensor, completion_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The teacher's batch."""
        return self.of_responses(prompts, completion_ids, completion_mask)


class ForSdpo(ReviserContext):
    """As SDPO's trainer calls it."""

    def build(
        self, batch: Mapping[str, torch.Tensor], prompts: list[Any], rewards: Any, feedbacks: Any = None
    ) -> dict[str, torch.Tensor]:
        """The teacher's batch; all responses are distilled."""
        context = self.of_responses(prompts, batch["completion_ids"], batch["completion_mask"])
        return context | {"self_distillation_mask": torch.ones(len(prompts))}


class PeerStep:
    """A trainer of TRL's on the questions of the shape.

    With `recorded` responses nothing is sampled. `as_it_comes` leaves SDFT its own context, in which the
    teacher reads a reference answer.
    """

    def __init__(
        self,
        peer: Peer,
        shape: Shape,
        folder: Path,
        workplace: Path,
        recorded: Mapping[tuple[int, ...], Sequence[int]] | None = None,
        as_it_comes: bool = False,
    ) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        roles = roles_of(self.tokenizer)
        self._recorded = recorded
        self._sampling = 0.0
        rows = Dataset.from_list(
            [
                {"prompt": [{"role": "user", "content": q.text}], "privileged_context": NEVER_RIGHT}
                for q in questions_of(shape, roles)
            ]
        )
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.trainer = _make(
            peer, self.model, folder, rows, self.tokenizer, _settings(peer, shape, workplace)
        )
        if not as_it_comes and peer != "distillation":
            context = ForSdft if peer == "sdft" else ForSdpo
            self.trainer.teacher_context_builder = context(self.trainer, roles)
        name = "_generate_single_turn" if peer == "distillation" else "_generate"
        self._returns_prompts = peer != "distillation"
        self._generate = getattr(self.trainer, name)
        setattr(self.trainer, name, self._timed)
        self.trainer.remove_callback(PrinterCallback)
        self.clock = StepClock()
        self.trainer.add_callback(self.clock)

    def _timed(self, prompt_ids: list[list[int]], *more: Any) -> Any:
        started = time.perf_counter()
        if self._recorded is None:
            found = self._generate(prompt_ids, *more)
        else:
            responses = [list(self._recorded[tuple(ids)]) for ids in prompt_ids]
            found = (prompt_ids, responses) if self._returns_prompts else responses
        self._sampling = time.perf_counter() - started
        return found

    def turn(self) -> Seconds:
        """One step; `rollout` is the call of `model.generate`, `update` all the rest."""
        self.trainer.train()
        assert self.clock.seconds is not None, "a step was made"
        return {
            "step": self.clock.seconds,
            "rollout": self._sampling,
            "update": self.clock.seconds - self._sampling,
        }

    @property
    def loss(self) -> float:
        """Of the last step, before its update."""
        return float(next(row["loss"] for row in self.trainer.state.log_history if "loss" in row))


def _settings(peer: Peer, shape: Shape, workplace: Path) -> dict[str, Any]:
    """What all have, and what each calls its own way."""
    common = {
        "output_dir": str(workplace / "trl"),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "max_steps": 1,
        "learning_rate": 1e-6,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "per_device_train_batch_size": shape.batch,
        "gradient_accumulation_steps": 1,
        "max_completion_length": shape.response_tokens,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    }
    if peer == "distillation":
        return common | {"beta": 1.0}
    own = {
        "num_generations": 1,
        "distillation_mode": "full_logits",
        "distillation_alpha": 1.0,
        "distillation_is_clip": None,
        "distillation_topk": None,
        "teacher_model_kind": "base",
    }
    # Its diagnostics are about its own teacher context, which is replaced.
    sdpo = {"distillation_weight": 1.0, "diagnostics_warning_interval": 0}
    return common | own | (sdpo if peer == "sdpo" else {})


def _make(
    peer: Peer, model: Any, folder: Path, rows: Dataset, tokenizer: Any, settings: dict[str, Any]
) -> Any:
    if peer == "sdft":
        return SDFTTrainer(model, SDFTConfig(**settings), rows, processing_class=tokenizer)
    if peer == "sdpo":
        wrong = [lambda prompts, **_: [0.0] * len(prompts)]
        return SDPOTrainer(model, wrong, SDPOConfig(**settings), rows, processing_class=tokenizer)
    teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config = DistillationConfig(**settings)
    return DistillationTrainer(model, teacher, config, rows, processing_class=tokenizer)
