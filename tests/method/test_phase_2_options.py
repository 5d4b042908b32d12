"""The options of phase 2, each through the trainer: the loss against one written out, and exact resume."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from distill_bench import QUESTIONS, Bench, dense_log_probabilities, perturbed, stored_pairs
from sdzero import tiny
from sdzero.method.roles import AlignmentError, ContrastivePair


def base_model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float64)


def first_step(folder: Path, **settings: Any) -> tuple[Bench, PreTrainedModel, dict[str, Any], Any]:
    """One step on eight questions; the bench, the teacher as it was, the logged step, its gradients."""
    bench = Bench(folder, QUESTIONS[:8], teacher=perturbed(base_model()), dtype=torch.float64, **settings)
    teacher = copy.deepcopy(bench.teacher.model)
    gradients: dict[str, torch.Tensor] = {}

    def keep(model: Any) -> Any:
        gradients.update({n: p.grad.clone() for n, p in bench.model.named_parameters()})
        return clip(model)

    clip = bench.trainer._clip_grad_norm
    bench.trainer._clip_grad_norm = keep
    return bench, teacher, bench.train()[0], gradients


def reverse(s_TV: torch.Tensor, t_TV: torch.Tensor) -> torch.Tensor:
    return (s_TV.exp() * (s_TV - t_TV)).sum(-1)


def written_out(bench: Bench, teacher: PreTrainedModel, option: str, value: float) -> Any:
    """The loss of the step, one response at a time, with whole distributions; and the student it is of."""
    student = base_model()
    pairs = stored_pairs(bench)
    tokens = sum(len(pair.targets) for pair, _ in pairs)
    mean_reward = sum(reward for _, reward in pairs) / len(pairs)
    assert 0 < mean_reward < 1  # both branches are there
    roles, total = bench.sampler.roles, torch.zeros((), dtype=torch.float64)
    for pair, reward in pairs:
        s_TV = dense_log_probabilities(student, pair.student_ids, pair.student_logit_positions)
        with torch.no_grad():
            t_TV = dense_log_probabilities(teacher, pair.teacher_ids, pair.teacher_logit_positions)
            if option == "contrast":
                prompt = pair.student_ids[: -len(pair.targets)]
                other = roles.distillation_pair(prompt, pair.targets, 1 - reward)
                o_TV = dense_log_probabilities(teacher, other.teacher_ids, other.teacher_logit_positions)
                plain_TV = dense_log_probabilities(teacher, pair.student_ids, pair.student_logit_positions)
                t_TV = (t_TV - value * (o_TV - plain_TV)).log_softmax(-1)
        losses_T = reverse(s_TV, t_TV)
        if option == "divergence_clip":
            losses_T = losses_T * (value / losses_T.detach().clamp_min(value))
        if option == "token_share":
            entropy_T = -(s_TV.exp() * s_TV).sum(-1)
            kept = math.ceil(value * len(losses_T))
            losses_T = losses_T[entropy_T.topk(kept).indices] * (len(losses_T) / kept)
        if option == "policy_gradient_weight":
            chosen_T = s_TV.gather(-1, torch.tensor(pair.targets)[:, None])[:, 0]
            losses_T = losses_T - value * (reward - mean_reward) * chosen_T
        total = total + losses_T.sum()
    return total / tokens, student


OPTIONS = {
    "divergence_clip": 0.05,
    "token_share": 0.4,
    "contrast": 0.7,
    "policy_gradient_weight": 0.5,
}


@pytest.mark.parametrize("micro_batch_size", [8, 2])
@pytest.mark.parametrize("option", OPTIONS)
def test_the_loss_is_the_one_written_out(tmp_path: Path, option: str, micro_batch_size: int) -> None:
    value = OPTIONS[option]
    bench, teacher, logged, gradients = first_step(
        tmp_path / "run", **{option: value, "micro_batch_size": micro_batch_size}
    )
    loss, student = written_out(bench, teacher, option, value)
    loss.backward()
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-6)
    plain, _ = written_out(bench, teacher, "none", 0.0)
    assert abs(plain.item() - loss.item()) > 1e-3 * abs(plain.item())  # the option does something
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_a_stopped_clip_is_the_derivative_of_the_minimum(tmp_path: Path) -> None:
    clip = 0.05
    bench, teacher, _, gradients = first_step(tmp_path / "run", divergence_clip=clip, clip_gradient="stop")
    student, total, tokens, clipped = base_model(), 0.0, 0, 0
    for pair, _ in stored_pairs(bench):
        s_TV = dense_log_probabilities(student, pair.student_ids, pair.student_logit_positions)
        with torch.no_grad():
            t_TV = dense_log_probabilities(teacher, pair.teacher_ids, pair.teacher_logit_positions)
        losses_T = reverse(s_TV, t_TV)
        total, tokens = total + losses_T.clamp_max(clip).sum(), tokens + len(losses_T)
        clipped += int((losses_T > clip).sum())
    assert 0 < clipped < tokens
    (total / tokens).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-9)


def test_a_contrast_of_equal_phrases_is_the_model_itself(tmp_path: Path) -> None:
    """With student and teacher alike, and the true phrase and the other one the same, nothing is to learn."""
    bench = Bench(tmp_path / "run", QUESTIONS[:4], dtype=torch.float64, contrast=1.0)
    roles = bench.sampler.roles
    prompt, targets = roles.generator_prompt(QUESTIONS[0]), [40, 50, roles.end_token_id]
    pair = roles.distillation_pair(prompt, targets, 1)
    same = ContrastivePair(
        **vars(pair), other_ids=pair.teacher_ids, other_logit_positions=pair.teacher_logit_positions
    )
    from sdzero.method.micro_batches import make_micro_batch

    batch = make_micro_batch([(same, 1)], [], bench.trainer.pad_id)
    losses = bench.trainer.objective.token_losses(bench.model, bench.teacher, batch, None)
    assert abs(losses.total.item()) < 1e-10
    bench.run.close()
    with pytest.raises(AlignmentError, match="other phrase"):
        ContrastivePair(**vars(pair), other_ids=pair.teacher_ids[:-1], other_logit_positions=(1, 2, 3))


def test_the_contrast_costs_what_the_teacher_reads(tmp_path: Path) -> None:
    bench, *_ = first_step(tmp_path / "run", contrast=1.0)
    read = sum(2 * len(p.teacher_ids) + len(p.student_ids) for p, _ in stored_pairs(bench))
    counted = bench.ledger.by_stage()["distill"]["teacher_tokens"]
    # The two phrases differ by a few tokens.
    assert abs(counted - read) <= 8 * 12
    assert counted > 0.9 * read


def test_questions_are_drawn_by_solve_rate_and_all_are_counted(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS, question_sampling="solve_rate")
    bench.train()
    asked = [
        [json.loads(line)["question"] for line in file.read_text().splitlines()]
        for file in sorted((tmp_path / "run/distill/rollouts").glob("*.jsonl"))
    ]
    assert [len(step) for step in asked] == [8] * 6
    assert all(len(set(step)) == 8 for step in asked)
    assert len({name for step in asked for name in step}) < 48  # some twice, some never
    assert bench.ledger.by_stage()["distill"]["responses"] == 48


def test_the_teacher_follows_every_step(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:24], teacher_decay=0.5)
    start = {n: p.clone() for n, p in bench.teacher.model.named_parameters()}
    students: list[dict[str, torch.Tensor]] = []
    follow = bench.teacher.follow

    def watch(student: PreTrainedModel, decay: float) -> None:
        students.append({n: p.detach().clone() for n, p in student.named_parameters()})
        follow(student, decay)

    bench.teacher.follow = watch  # type: ignore[method-assign]
    bench.train()
    assert len(students) == 3
    for name, expected in start.items():
        for student in students:
            expected = 0.5 * expected + 0.5 * student[name]
        torch.testing.assert_close(dict(bench.teacher.model.named_parameters())[name], expected)


def test_a_plateau_of_the_tuning_score_syncs_the_teacher(tmp_path: Path) -> None:
    scores = iter([0.4, 0.5, 0.5, 0.6, 0.55, 0.5])
    bench = Bench(
        tmp_path / "run",
        QUESTIONS,
        tuning_score=lambda step: {"avg": next(scores)},
        extra={"eval_strategy": "steps", "eval_steps": 1, "logging_steps": 1},
    )
    bench.trainer.args.sync = "plateau"
    logged = bench.train()
    steps = [row for row in logged if "loss" in row]
    # After steps 3 and 5; what is logged of a step is from before its evaluation, and the last never syncs.
    assert [row["teacher_syncs"] for row in steps] == [0, 0, 0, 1, 1, 2]
    assert bench.teacher.sync_count == 2


@pytest.mark.parametrize(
    "settings",
    [{"teacher_decay": 0.9}, {"question_sampling": "solve_rate"}, {"contrast": 1.0, "token_share": 0.5}],
    ids=["teacher_decay", "solve_rate", "contrast and choice"],
)
def test_four_steps_are_two_and_two_steps_with_options(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = Bench(tmp_path / "whole", QUESTIONS[:32], **settings)
    whole.train()
    cut = Bench(tmp_path / "cut", QUESTIONS[:32], **settings)
    cut.train_until(3)
    again = Bench(tmp_path / "cut", QUESTIONS[:32], **settings)
    assert [row["step"] for row in again.train()] == [3, 4]
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(again.model.named_parameters())[name]), name
    assert again.teacher.fingerprint == whole.teacher.fingerprint


@pytest.mark.parametrize("settings", [{}, {"divergence": "jsd", "divergence_clip": 0.05}])
def test_both_backends_make_the_same_step(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Through the trainer; TRL's kernel works in float32."""
    steps = {}
    for backend in ("chunked", "trl"):
        bench, _, logged, gradients = first_step(
            tmp_path / backend, divergence_backend=backend, chunk_tokens="auto", **settings
        )
        assert bench.trainer.objective.backend == backend
        steps[backend] = logged, gradients
    (ours, our_gradients), (theirs, their_gradients) = steps.values()
    for name in ("loss", "divergence_r0", "divergence_r1", "entropy"):
        assert theirs[name] == pytest.approx(ours[name], rel=1e-4)
    assert max(float(gradient.abs().max()) for gradient in our_gradients.values()) > 1e-4
    for name, gradient in our_gradients.items():
        torch.testing.assert_close(their_gradients[name], gradient, rtol=1e-3, atol=1e-6)
