"""The loss of phase 2 when a part of the tokens carries it, against the loss written out by hand."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from sdzero import tiny
from sdzero.ledger import Ledger
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.distill_config import distill_config
from sdzero.method.graded import GradedSampler
from sdzero.method.micro_batches import make_micro_batch
from sdzero.method.restrict import carrying_tokens
from sdzero.method.roles import AlignmentError, DistillationPair, Roles, StudentTargets
from sdzero.method.teacher import Teacher
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings, Recipe
from sdzero.recipe_distill import DistillSettings
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.run_dir import RunDir
from sdzero.tiny.arithmetic import post_training_problems
from sdzero.verify.math import MathVerifier

QUESTIONS = [Question(p.text, p.text, str(p.answer), p.kind) for p in post_training_problems()[:8]]
MARKERS = ["5", "7"]
"""Digits, so that this base model, which never hedges, has false starts to find."""


def settings(**distill: Any) -> DistillSettings:
    sizes = {"batch_size": 8, "micro_batch_size": 8, "max_new_tokens": 64}
    own = {"learning_rate": 1e-3, "false_start_markers": MARKERS}
    return DistillSettings.model_validate(sizes | own | distill)


def perturbed(model: PreTrainedModel) -> PreTrainedModel:
    """Another teacher, so that there is something to distil."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.mul_(1 + 0.3 * noise.to(parameter.dtype))
    return other


class Step:
    """One step of phase 2 in float64: its loss, its gradients, and the same worked out by hand."""

    def __init__(self, folder: Path, distill: DistillSettings) -> None:
        tokenizer = load_tokenizer("tiny")
        model = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float64)
        self.fresh, self.teacher = copy.deepcopy(model), perturbed(model)
        self.roles = Roles(tokenizer, PhraseSettings(), ChatSettings())
        self.settings = distill
        engine = TransformersEngine(model, [self.roles.end_token_id], int(tokenizer.pad_token_id))
        optimizer = {"learning_rate": 1e-3}
        recipe = Recipe.model_validate(
            {
                "name": "test",
                "data": {"n1": 1, "n2": 1, "test": 1},
                "collect": {"max_new_tokens": 8},
                "srt": optimizer,
                "distill": distill.model_dump(),
                "rft": optimizer,
                "evaluate": {"max_new_tokens": 8},
            }
        )
        verifier = MathVerifier()
        run = RunDir.open(folder, recipe)
        sampler = GradedSampler(
            engine,
            self.roles,
            lambda items: [verifier.grade(q, text) for q, text in items],
            run,
            Ledger(run.path("ledger.jsonl")),
        )
        config = distill_config(
            distill, run.path("checkpoints"), seed=0, gradient_checkpointing=False, use_cpu=True
        )
        logged: list[dict[str, Any]] = []
        trainer = SelfDistillationTrainer(
            model,
            Teacher(copy.deepcopy(self.teacher), "given"),
            config,
            QUESTIONS,
            sampler,
            tokenizer,
            report=logged.append,
        )
        self.gradients: dict[str, torch.Tensor] = {}
        clip = trainer._clip_grad_norm

        def keep_and_clip(inner: Any) -> Any:
            self.gradients.update({n: p.grad.clone() for n, p in model.named_parameters()})
            return clip(inner)

        trainer._clip_grad_norm = keep_and_clip
        trainer.train()
        self.logged = logged[0]
        file = run.path("distill/rollouts/step-000000.jsonl")
        self.rows = [json.loads(line) for line in file.read_text().splitlines()]
        run.close()

    def flags(self, row: dict[str, Any]) -> tuple[bool, ...]:
        return carrying_tokens(
            row["token_ids"],
            lambda ids: self.roles.decode(ids, special=True),
            self.roles.end_token_id,
            self.settings.divergence_on,
            MARKERS,
        )

    def by_hand(self) -> torch.Tensor:
        """One response at a time, whole distributions; the mean over what carries."""
        prompts = {q.id: self.roles.generator_prompt(q) for q in QUESTIONS}
        sums, counts = [], []
        for row in self.rows:
            pair = self.roles.distillation_pair(
                prompts[row["question"]], row["token_ids"], int(row["outcome"] == "correct")
            )
            own = self.fresh(torch.tensor([pair.student_ids])).logits[0].log_softmax(-1)
            with torch.no_grad():
                other = self.teacher(torch.tensor([pair.teacher_ids])).logits[0].log_softmax(-1)
            flags = self.flags(row)
            places = zip(pair.student_logit_positions, pair.teacher_logit_positions, flags, strict=True)
            terms = [(own[s].exp() * (own[s] - other[t])).sum() for s, t, flag in places if flag]
            sums.append(torch.stack(terms).sum() if terms else torch.zeros((), dtype=torch.float64))
            counts.append(len(terms))
        if self.settings.normalize == "tokens":
            return torch.stack(sums).sum() / sum(counts)
        shares = [total / count for total, count in zip(sums, counts, strict=True) if count]
        return torch.stack(shares).sum() / len(shares)


@pytest.mark.parametrize("micro_batch_size", [8, 2, 1])
@pytest.mark.parametrize("normalize", ["tokens", "sequences"])
@pytest.mark.parametrize("on", ["after_last_false_start", "final_answer"])
def test_the_loss_is_the_mean_over_what_carries_whatever_the_micro_batch(
    on: str, normalize: str, micro_batch_size: int, tmp_path: Path
) -> None:
    step = Step(
        tmp_path / "run",
        settings(divergence_on=on, normalize=normalize, micro_batch_size=micro_batch_size),
    )
    carrying = sum(sum(step.flags(row)) for row in step.rows)
    targets = sum(len(row["token_ids"]) for row in step.rows)
    assert 0 < carrying < targets
    assert step.logged["carrying_share"] == pytest.approx(carrying / targets)
    loss = step.by_hand()
    loss.backward()
    assert step.logged["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in step.fresh.named_parameters():
        torch.testing.assert_close(step.gradients[name], parameter.grad, rtol=1e-5, atol=1e-8)


def test_with_all_tokens_nothing_is_weighed_or_logged(tmp_path: Path) -> None:
    step = Step(tmp_path / "run", settings())
    assert "carrying_share" not in step.logged
    assert step.logged["loss"] == pytest.approx(step.by_hand().item(), rel=1e-6)


def test_responses_that_were_cut_before_their_answer_carry_nothing_and_train_nothing(tmp_path: Path) -> None:
    step = Step(tmp_path / "run", settings(divergence_on="final_answer", max_new_tokens=2))
    assert step.logged["carrying_share"] == 0
    assert step.logged["loss"] == 0
    assert all(not gradient.any() for gradient in step.gradients.values())


def test_weights_travel_with_the_micro_batch_in_the_order_of_the_targets() -> None:
    first = StudentTargets((1, 2, 3), (2, 3), (0, 1), loss_weights=(0.0, 1.0))
    second = StudentTargets((1, 4), (4,), (0,))
    batch = make_micro_batch([(first, 0), (second, 1)], [], pad=0)
    assert batch["target_weights_T"].tolist() == [0.0, 1.0, 1.0]
    assert batch["weight_sums_B"].tolist() == [1.0, 1.0]
    assert "target_weights_T" not in make_micro_batch([(second, 1)], [], pad=0)


def test_as_many_weights_as_targets() -> None:
    with pytest.raises(AlignmentError, match="2 targets but 1 loss weights"):
        StudentTargets((1, 2, 3), (2, 3), (0, 1), loss_weights=(1.0,))
    with pytest.raises(AlignmentError, match="1 targets but 2 loss weights"):
        DistillationPair((1, 4), (1, 2, 4), (4,), (0,), (1,), loss_weights=(1.0, 0.0))
