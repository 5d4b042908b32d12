import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill_bench import QUESTIONS, Bench, make_recipe, perturbed, scored_every
from sdzero import tiny
from sdzero.errors import UserError
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.micro_batches import deal, make_micro_batch
from sdzero.method.objectives import phrase_reward
from sdzero.method.roles import DistillationPair
from sdzero.method.teacher import Teacher, fingerprint
from sdzero.verify.verdict import Outcome, Verdict
from support import in_turn


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


# ---- what is minimised ----


def dense_reverse(student: PreTrainedModel, teacher: PreTrainedModel, pairs: list[DistillationPair]) -> Any:
    """L_SD written out: one pair at a time, whole distributions, mean over all target tokens."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for pair in pairs:
        own = student(torch.tensor([pair.student_ids])).logits[0].log_softmax(-1)
        with torch.no_grad():
            other = teacher(torch.tensor([pair.teacher_ids])).logits[0].log_softmax(-1)
        for s, t in zip(pair.student_logit_positions, pair.teacher_logit_positions, strict=True):
            total = total + (own[s].exp() * (own[s] - other[t])).sum()
            tokens += 1
    return total / tokens


@pytest.mark.parametrize("micro_batch_size", [8, 4, 1])
def test_the_step_is_the_papers_loss_whatever_the_micro_batch(tmp_path: Path, micro_batch_size: int) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float64)
    bench = Bench(
        tmp_path / "run",
        QUESTIONS[:8],
        teacher=perturbed(base),
        dtype=torch.float64,
        micro_batch_size=micro_batch_size,
    )
    teacher = copy.deepcopy(bench.teacher.model)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        gradients.update({n: p.grad.clone() for n, p in bench.model.named_parameters()})

    clip = bench.trainer._clip_grad_norm
    bench.trainer._clip_grad_norm = lambda model: (keep(), clip(model))[1]
    logged = bench.train()
    rows = [
        json.loads(line)
        for line in (tmp_path / "run/distill/rollouts/step-000000.jsonl").read_text().splitlines()
    ]
    prompts = {q.id: bench.sampler.roles.generator_prompt(q) for q in QUESTIONS[:8]}
    pairs = [
        bench.sampler.roles.distillation_pair(
            prompts[row["question"]], row["token_ids"], int(row["outcome"] == "correct")
        )
        for row in rows
    ]
    assert {row["outcome"] for row in rows} > {"correct"}  # both branches are there
    student = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float64)
    loss = dense_reverse(student, teacher, pairs)
    loss.backward()
    assert logged[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_sequence_normalisation_weighs_each_response_alike(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float64)
    bench = Bench(
        tmp_path / "run", QUESTIONS[:4], teacher=perturbed(base), dtype=torch.float64, normalize="sequences"
    )
    teacher = copy.deepcopy(bench.teacher.model)
    logged = bench.train()
    lines = (tmp_path / "run/distill/rollouts/step-000000.jsonl").read_text().splitlines()
    prompts = {q.id: bench.sampler.roles.generator_prompt(q) for q in QUESTIONS[:4]}
    means = []
    for row in map(json.loads, lines):
        pair = bench.sampler.roles.distillation_pair(
            prompts[row["question"]], row["token_ids"], int(row["outcome"] == "correct")
        )
        with torch.no_grad():
            means.append(float(dense_reverse(base, teacher, [pair])))
    assert logged[0]["loss"] == pytest.approx(sum(means) / len(means), rel=1e-6)


@pytest.mark.parametrize("kind", ["reverse", "forward", "mixed", "jsd"])
def test_equal_weights_and_equal_context_give_zero(tmp_path: Path, kind: str) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:4], dtype=torch.float64, divergence=kind)
    roles = bench.sampler.roles
    prompt = tuple(roles.generator_prompt(QUESTIONS[0]))
    targets = (40, 50, roles.end_token_id)
    ids = prompt + targets
    positions = tuple(range(len(prompt) - 1, len(ids) - 1))
    same = DistillationPair(ids, ids, targets, positions, positions)
    batch = make_micro_batch([(same, 1)], [], bench.trainer.pad_id)
    bench.trainer._step = {"sum_divergence_r1": 0.0, "sum_divergence_r0": 0.0, "sum_entropy": 0.0}
    bench.trainer._step |= {"tokens_r0": 0, "tokens_r1": 0}
    loss = bench.trainer.compute_loss(bench.model, batch, num_items_in_batch=3)
    loss.backward()
    assert abs(loss.item()) < 1e-12
    assert max(p.grad.abs().max().item() for p in bench.model.parameters()) < 1e-10
    bench.run.close()


def test_no_gradient_and_no_change_in_the_teacher(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:16])
    before = bench.teacher.fingerprint
    start = weights(bench.model)
    bench.train()
    assert fingerprint(bench.teacher.model) == before
    assert all(parameter.grad is None for parameter in bench.teacher.model.parameters())
    optimized = {id(p) for group in bench.trainer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for p in bench.teacher.model.parameters()}
    assert any(not torch.equal(start[name], p) for name, p in bench.model.named_parameters())


def test_training_brings_the_student_to_the_teacher(tmp_path: Path) -> None:
    """On the responses of the first epoch, whose loss has no noise of sampling in it."""
    before = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
    bench = Bench(tmp_path / "run", QUESTIONS, epochs=3, learning_rate=3e-4)
    bench.train()
    roles = bench.sampler.roles
    prompts = {q.id: roles.generator_prompt(q) for q in QUESTIONS}
    rows = [r for s in range(6) for r in bench.run.read_jsonl(f"distill/rollouts/step-{s:06d}.jsonl")]
    pairs = [
        roles.distillation_pair(prompts[r["question"]], r["token_ids"], int(r["outcome"] == "correct"))
        for r in rows
    ]
    with torch.no_grad():
        loss_before = dense_reverse(before, bench.teacher.model, pairs)
        loss_after = dense_reverse(bench.model, bench.teacher.model, pairs)
    assert loss_after < 0.7 * loss_before


# ---- what a step leaves out, and what it counts ----


def test_responses_that_the_verifier_failed_on_are_left_out(tmp_path: Path) -> None:
    grade = in_turn(Outcome.ERROR, Outcome.CORRECT, Outcome.WRONG, Outcome.ERROR)
    bench = Bench(tmp_path / "run", QUESTIONS[:8], grade=grade)
    logged = bench.train()
    assert logged[0]["verifier_errors"] == bench.trainer.counted["verifier_errors"] > 0
    assert logged[0]["reward"] == pytest.approx(0.5, abs=0.3)


def test_a_batch_with_nothing_to_learn_from_is_survived(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path / "run",
        QUESTIONS[:8],
        grade=lambda items: [Verdict(Outcome.ERROR)] * len(items),
        max_new_tokens=96,
    )
    start = weights(bench.model)
    bench.train()
    rows = bench.run.read_jsonl("distill/rollouts/step-000000.jsonl")
    assert {row["outcome"] for row in rows} == {"error"}
    assert all(torch.equal(start[name], p) for name, p in bench.model.named_parameters())


def test_overlong_contexts_are_dropped_and_counted_or_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "drop", QUESTIONS[:8], max_context=60)
    logged = bench.train()
    assert logged[0]["overlong"] > 0
    with pytest.raises(UserError, match="tokens, more than 60"):
        Bench(tmp_path / "error", QUESTIONS[:8], max_context=60, overlong="error").train()


def test_a_truncated_response_is_trained_on_as_wrong(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:8], max_new_tokens=4)
    logged = bench.train()
    assert logged[0]["truncated"] == 8
    assert logged[0]["reward"] == 0
    assert logged[0]["divergence_r0"] > 0
    assert logged[0]["divergence_r1"] == 0


def test_the_ledger_counts_each_step_once(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:16])
    bench.train()
    counted = bench.ledger.by_stage()["distill"]
    rows = [
        row for step in range(2) for row in bench.run.read_jsonl(f"distill/rollouts/step-{step:06d}.jsonl")
    ]
    assert counted["responses"] == len(rows) == 16
    assert counted["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows)
    assert counted["trained_tokens"] == counted["sampled_tokens"]  # every token of y is a target
    assert counted["teacher_tokens"] > counted["trained_tokens"]


def test_rollouts_carry_the_version_of_the_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:24])
    bench.train()
    versions = [
        {row["weight_version"] for row in bench.run.read_jsonl(f"distill/rollouts/step-{s:06d}.jsonl")}
        for s in range(3)
    ]
    assert versions == [{0}, {1}, {2}]


# ---- sync, rehearsal, ablations ----


def test_the_teacher_is_synced_every_n_steps_but_not_after_the_last(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS, sync="steps", sync_every=2)
    logged = bench.train()
    assert [row["teacher_syncs"] for row in logged] == [0, 1, 1, 2, 2, 2]


def test_the_teacher_is_synced_after_each_epoch(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:20], sync="epoch", epochs=2)
    start = bench.teacher.fingerprint
    logged = bench.train()
    assert [row["teacher_syncs"] for row in logged] == [0, 0, 1, 1, 1, 1]
    assert bench.teacher.fingerprint != start


def test_rehearsal_adds_the_revision_loss(tmp_path: Path) -> None:
    plain = Bench(tmp_path / "plain", QUESTIONS[:8]).train()
    rehearsed = Bench(
        tmp_path / "rehearsed",
        QUESTIONS[:8],
        rehearsal=True,
        rehearsal_weight=0.5,
        rehearsal_batch_size=4,
        micro_batch_size=2,
    ).train()
    assert rehearsed[0]["loss"] > plain[0]["loss"]
    assert rehearsed[0]["divergence_r0"] == pytest.approx(plain[0]["divergence_r0"], rel=1e-3)
    with pytest.raises(UserError, match="rehearsal needs"):
        Bench(tmp_path / "none", QUESTIONS[:8], rehearsal_weight=0.5)


def test_the_phrase_follows_the_reward_unless_an_ablation_says_otherwise() -> None:
    assert [phrase_reward(r, "true") for r in (0, 1)] == [0, 1]
    assert [phrase_reward(r, "held") for r in (0, 1)] == [1, 1]
    assert [phrase_reward(r, "flipped") for r in (0, 1)] == [1, 0]


def test_student_and_teacher_may_not_share_weights(tmp_path: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny.model_folder())
    bench = Bench(tmp_path / "run", QUESTIONS[:8])
    bench.run.close()
    with pytest.raises(ValueError, match="shares parameters"):
        SelfDistillationTrainer(
            base, Teacher(base, "same"), bench.trainer.args, QUESTIONS, bench.sampler, bench.tokenizer
        )


# ---- resuming and evaluation ----


def test_four_steps_are_two_and_two_steps(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "sync": "steps",
        "sync_every": 2,
        "rehearsal": True,
        "rehearsal_weight": 0.3,
        "rehearsal_batch_size": 4,
    }
    whole = Bench(tmp_path / "whole", QUESTIONS[:32], **settings)
    whole.train()
    cut = Bench(tmp_path / "cut", QUESTIONS[:32], **settings)
    cut.train_until(3)
    sampled_before = (tmp_path / "cut/distill/rollouts/step-000003.jsonl").stat().st_mtime_ns
    again = Bench(tmp_path / "cut", QUESTIONS[:32], **settings)
    logged = again.train()
    assert [row["step"] for row in logged] == [3, 4]
    assert logged[-1]["teacher_syncs"] == 1
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(again.model.named_parameters())[name]), name
    assert again.teacher.fingerprint == whole.teacher.fingerprint
    # The rollout that was finished before the end was read again, not sampled again.
    assert (tmp_path / "cut/distill/rollouts/step-000003.jsonl").stat().st_mtime_ns == sampled_before
    assert again.ledger.by_stage()["distill"]["responses"] == 32


def test_the_best_checkpoint_on_the_tuning_set_is_kept(tmp_path: Path) -> None:
    scores = {2: 0.4, 4: 0.9, 6: 0.5}
    seen: dict[int, str] = {}
    benches: list[Bench] = []

    def score(step: int) -> dict[str, float]:
        seen[step] = fingerprint(benches[0].model)
        return {"avg": scores[step]}

    benches.append(Bench(tmp_path / "run", QUESTIONS, tuning_score=score, extra=scored_every(2)))
    benches[0].train()
    assert sorted(seen) == [2, 4, 6]
    assert fingerprint(benches[0].model) == seen[4]


def test_training_stops_early_when_the_tuning_score_falls(tmp_path: Path) -> None:
    recipe_keys = {"evaluate_every": 1, "early_stop_patience": 2}
    steps: list[int] = []

    def score(step: int) -> dict[str, float]:
        steps.append(step)
        return {"avg": 1.0 / step}

    bench = Bench(tmp_path / "run", QUESTIONS, tuning_score=score, extra=scored_every(1))
    bench.run.close()
    with pytest.raises(ValueError, match="tuning"):
        make_recipe(**recipe_keys)  # a recipe needs a tuning set for it
    from transformers import EarlyStoppingCallback

    bench.trainer.add_callback(EarlyStoppingCallback(2))
    bench.trainer.train()
    assert steps == [1, 2, 3]


# ---- pieces ----


@pytest.mark.parametrize(("rows", "hands"), [(0, 3), (2, 3), (7, 3), (9, 3)])
def test_dealing_loses_nothing_and_is_even(rows: int, hands: int) -> None:
    dealt = deal(list(range(rows)), hands)
    assert [row for hand in dealt for row in hand] == list(range(rows))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
