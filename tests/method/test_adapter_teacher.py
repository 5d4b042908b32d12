"""The Reviser with LoRA: the SRT model from the first step on, the student's at a sync, never the base."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from distill_bench import QUESTIONS, Bench, dense_log_probabilities, make_recipe, scored_every, stored_pairs
from sdzero import lora_start, tiny
from sdzero.adapters import (
    adapter_parameters,
    attach_adapter,
    has_adapter,
    is_adapter_name,
    lora_config,
    merge_adapter,
)
from sdzero.lora_start import student_and_teacher
from sdzero.method.adapter_teacher import AdapterTeacher, check_apart
from sdzero.method.teacher import TEACHER_WEIGHTS, Teacher, fingerprint
from sdzero.models import load_model, load_tokenizer, save_model
from sdzero.recipe import ModelSettings
from sdzero.recipe_lora import LoraSettings
from sdzero.rollout.engine import Request, Sampling
from sdzero.run_context import RunContext

LORA = LoraSettings(rank=4, alpha=8)
IDS = list(range(5, 25))
SYNC: dict[str, Any] = {"sync": "steps", "sync_every": 2}
SMALL: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 4}
FLOAT64 = ModelSettings(device="cpu", dtype="float64")


def log_probabilities(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return dense_log_probabilities(model.eval(), IDS, range(len(IDS)))


def largest_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def fill(model: PreTrainedModel, size: float = 0.3, seed: int = 2) -> PreTrainedModel:
    """Give the adapter a part of its own, as training does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if ".lora_B." in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=generator))
    return model


def base_model() -> PreTrainedModel:
    return load_model("tiny", FLOAT64)


def adapted(lora: LoraSettings = LORA) -> PreTrainedModel:
    model = base_model()
    attach_adapter(model, lora_config(lora), seed=1, base=str(tiny.model_folder()))
    return model


def context_with(**lora: Any) -> RunContext:
    recipe = make_recipe().model_copy(
        update={"model": FLOAT64, "lora": LORA.model_copy(update=lora)},
    )
    nothing: Any = None
    return RunContext(recipe, *[nothing] * 9)


def srt_folder(folder: Path, keep: str) -> tuple[str, torch.Tensor]:
    """What SRT with an adapter leaves, and the log-probs of the model that it trained."""
    model = fill(adapted())
    expected = log_probabilities(model)
    if keep == "merged":
        merge_adapter(model)
    save_model(model, load_tokenizer("tiny"), folder)
    return str(folder), expected


# ---- what phase 2 starts from ----


@pytest.mark.parametrize("keep", ["merged", "adapter"])
@pytest.mark.parametrize("teacher", ["shared", "copy"])
def test_student_and_teacher_start_at_the_srt_model_and_not_at_the_base(
    tmp_path: Path, keep: str, teacher: str
) -> None:
    folder, expected = srt_folder(tmp_path / "srt", keep)
    student, reviser = student_and_teacher(context_with(keep=keep, teacher=teacher), folder)
    base = log_probabilities(base_model())
    assert largest_difference(expected, base) > 0.5
    for model in (student, reviser.model):
        assert largest_difference(log_probabilities(model), expected) < 1e-9
        assert largest_difference(log_probabilities(model), base) > 0.5
    assert has_adapter(student)
    assert isinstance(reviser, AdapterTeacher) == (teacher == "shared")
    check_apart(student, reviser)
    if keep == "merged":
        assert reviser.fingerprint == fingerprint(load_model(folder, FLOAT64))


def test_an_adapter_that_is_off_would_be_another_teacher(tmp_path: Path) -> None:
    """The mistake that the tests above are to catch: with SRT's adapter off, the base model answers."""
    folder, expected = srt_folder(tmp_path / "srt", "adapter")
    student, reviser = student_and_teacher(context_with(keep="adapter"), folder)
    reviser.model.disable_adapters()
    assert largest_difference(log_probabilities(reviser.model), expected) > 0.5
    assert torch.equal(log_probabilities(reviser.model), log_probabilities(base_model()))
    # The student's adapter is another one, and stays on.
    assert largest_difference(log_probabilities(student), expected) < 1e-9


@pytest.mark.parametrize("keep", ["merged", "adapter"])
def test_a_teacher_without_the_srt_adapter_stops_phase_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: str
) -> None:
    folder, _ = srt_folder(tmp_path / "srt", keep)

    class Forgets(AdapterTeacher):
        @classmethod
        def beside(cls, student: PreTrainedModel, source: str) -> AdapterTeacher:
            made = adapted()
            return cls(made, source)

    monkeypatch.setattr(lora_start, "AdapterTeacher", Forgets)
    with pytest.raises(ValueError, match="is not the model in"):
        student_and_teacher(context_with(keep=keep), folder)


def test_an_adapter_folder_is_merged_if_the_recipe_merges(tmp_path: Path) -> None:
    folder, expected = srt_folder(tmp_path / "srt", "adapter")
    student, reviser = student_and_teacher(context_with(keep="merged"), folder)
    assert all(not p.any() for name, p in adapter_parameters(student).items() if ".lora_B." in name)
    assert largest_difference(log_probabilities(reviser.model), expected) < 1e-9


def test_the_weights_below_are_held_once(tmp_path: Path) -> None:
    folder, _ = srt_folder(tmp_path / "srt", "merged")
    student, reviser = student_and_teacher(context_with(), folder)
    teachers = dict(reviser.model.named_parameters())
    for name, parameter in student.named_parameters():
        assert (parameter is teachers[name]) == (not is_adapter_name(name)), name
        assert parameter.requires_grad == is_adapter_name(name)
    assert not any(parameter.requires_grad for parameter in teachers.values())


# ---- sync, mean, sharing ----


def test_a_sync_makes_it_the_student_as_it_was_then() -> None:
    student = fill(adapted(), seed=3)
    teacher = AdapterTeacher.beside(adapted(), "start")
    start = teacher.fingerprint
    assert start == fingerprint(base_model())
    teacher.sync(student)
    at_sync = log_probabilities(student)
    fill(student, seed=4)
    assert teacher.sync_count == 1
    assert teacher.fingerprint != start
    assert torch.equal(log_probabilities(teacher.model), at_sync)
    assert largest_difference(log_probabilities(student), at_sync) > 0.5


def test_a_copy_is_synced_to_the_merged_student() -> None:
    student, teacher = fill(adapted()), Teacher(base_model(), "start")
    teacher.sync(student)
    assert largest_difference(log_probabilities(teacher.model), log_probabilities(student)) < 1e-9
    teacher = Teacher(base_model(), "start")
    teacher.follow(student, 0.0)
    assert largest_difference(log_probabilities(teacher.model), log_probabilities(student)) < 1e-9


def test_the_mean_is_of_the_adapters_factors_by_hand() -> None:
    student = fill(adapted(), seed=3)
    teacher = AdapterTeacher.beside(fill(adapted(), seed=4), "start")
    before = {name: p.clone() for name, p in adapter_parameters(teacher.model).items()}
    for _ in range(2):
        teacher.follow(student, 0.75)
    for name, parameter in adapter_parameters(student).items():
        expected = 0.75**2 * before[name] + (1 - 0.75**2) * parameter
        torch.testing.assert_close(adapter_parameters(teacher.model)[name], expected, check_dtype=False)
    assert teacher.steps_followed == 2


def test_what_is_saved_is_the_adapter_alone_and_comes_back(tmp_path: Path) -> None:
    student = fill(adapted())
    teacher = AdapterTeacher.beside(adapted(), "start")
    teacher.sync(student)
    teacher.save(tmp_path)
    assert set(load_file(tmp_path / TEACHER_WEIGHTS)) == set(adapter_parameters(student))
    again = AdapterTeacher.beside(adapted(), "start")
    again.restore(tmp_path)
    assert (again.fingerprint, again.sync_count) == (teacher.fingerprint, 1)
    assert torch.equal(log_probabilities(again.model), log_probabilities(student))


def test_no_trained_weight_may_be_shared() -> None:
    student = adapted()
    with pytest.raises(ValueError, match="shares parameters"):
        check_apart(student, Teacher(student, "itself"))
    student = adapted()
    teacher = AdapterTeacher.beside(student, "start")
    check_apart(student, teacher)
    next(p for name, p in student.named_parameters() if not is_adapter_name(name)).requires_grad_(True)
    with pytest.raises(ValueError, match="shares parameters"):
        check_apart(student, teacher)
    with pytest.raises(ValueError, match="no adapter"):
        AdapterTeacher.beside(base_model(), "start")


# ---- training ----


def test_only_the_adapter_is_trained(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:8], lora=LORA, **SMALL, **SYNC)
    fill(bench.model, 0.05)  # so that A has a gradient too
    frozen = {n: p.detach().clone() for n, p in bench.model.named_parameters() if not is_adapter_name(n)}
    before = {name: p.detach().clone() for name, p in adapter_parameters(bench.model).items()}
    with_gradient: set[str] = set()

    def note(name: str) -> Any:
        return lambda gradient: with_gradient.add(name)

    for name, parameter in bench.model.named_parameters():
        if parameter.requires_grad:
            parameter.register_hook(note(name))
    bench.train()
    after = dict(bench.model.named_parameters())
    assert with_gradient == set(before)
    held = {id(p) for group in bench.trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(after[name]) for name in before}
    assert all(torch.equal(after[name], parameter) for name, parameter in frozen.items())
    assert all(after[name].grad is None for name in frozen)
    assert not any(torch.equal(after[name], parameter) for name, parameter in before.items())


def test_the_loss_with_a_frozen_head_is_the_dense_one(tmp_path: Path) -> None:
    """The one-pass divergence takes no gradient of the head; the adapter's is that of the whole softmax."""
    bench = Bench(tmp_path / "run", QUESTIONS[:4], dtype=torch.float64, lora=LORA, **SMALL)
    fill(bench.model, 0.1)
    gradients: dict[str, torch.Tensor] = {}
    step = bench.trainer.training_step

    def keep(model: Any, inputs: Any, items: Any = None) -> Any:
        loss = step(model, inputs, items)
        gradients.update({name: p.grad.clone() for name, p in adapter_parameters(bench.model).items()})
        gradients["loss"] = loss.detach()
        for parameter in adapter_parameters(bench.model).values():
            parameter.grad = None  # the step itself leaves the weights where they are
        return loss

    bench.trainer.training_step = keep
    bench.train()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for pair, _ in stored_pairs(bench):
        student = dense_log_probabilities(bench.model.train(), pair.student_ids, pair.student_logit_positions)
        with torch.no_grad():
            teacher = dense_log_probabilities(
                bench.teacher.model, pair.teacher_ids, pair.teacher_logit_positions
            )
        total = total + (student.exp() * (student - teacher)).sum()
        tokens += len(pair.targets)
    (total / tokens).backward()
    torch.testing.assert_close(gradients.pop("loss"), (total / tokens).detach())
    for name, parameter in adapter_parameters(bench.model).items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-6, atol=1e-10)


def test_a_shared_teacher_trains_as_a_copy_does(tmp_path: Path) -> None:
    logs = []
    for teacher in ("shared", "copy"):
        lora = LORA.model_copy(update={"teacher": teacher})
        bench = Bench(tmp_path / teacher, QUESTIONS[:16], dtype=torch.float64, lora=lora, **SMALL, **SYNC)
        logs.append([(row["loss"], row["teacher_syncs"], row["grad_norm"]) for row in bench.train()])
        assert isinstance(bench.teacher, AdapterTeacher) == (teacher == "shared")
    assert [syncs for _, syncs, _ in logs[0]] == [0, 1, 1, 1]
    for shared, copy in zip(*logs, strict=True):
        assert shared == pytest.approx(copy, rel=1e-6)


def test_responses_are_sampled_with_the_adapter_on(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:8], lora=LORA)
    prompts = [tuple(bench.sampler.roles.generator_prompt(question)) for question in QUESTIONS[:8]]
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]

    def sampled() -> list[tuple[int, ...]]:
        found = bench.sampler.engine.generate(requests, Sampling(0.7, 24))
        return [response.token_ids for response in found]

    plain = sampled()
    fill(bench.model)
    with_adapter = sampled()
    assert plain != with_adapter
    merge_adapter(bench.model)
    assert sampled() == with_adapter
    bench.run.close()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SYNC, id="sync"),
        pytest.param({"teacher_decay": 0.5}, id="mean", marks=pytest.mark.slow),
    ],
)
def test_four_steps_are_two_and_two_steps(tmp_path: Path, settings: dict[str, Any]) -> None:
    lora = LORA.model_copy(update={"dropout": 0.1})
    whole = Bench(tmp_path / "whole", QUESTIONS[:16], lora=lora, **SMALL, **settings)
    whole.train()
    cut = Bench(tmp_path / "cut", QUESTIONS[:16], lora=lora, **SMALL, **settings)
    cut.train_until(3)
    kept = next((tmp_path / "cut/distill/checkpoints").glob("checkpoint-2"))
    assert not (kept / "model.safetensors").exists()
    again = Bench(tmp_path / "cut", QUESTIONS[:16], lora=lora, **SMALL, **settings)
    assert [row["step"] for row in again.train()] == [3, 4]
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, dict(again.model.named_parameters())[name]), name
    assert again.teacher.fingerprint == whole.teacher.fingerprint
    assert whole.teacher.fingerprint not in (fingerprint(whole.model), fingerprint(base_model()))


def test_the_best_adapter_on_the_tuning_set_is_kept(tmp_path: Path) -> None:
    seen: dict[int, list[torch.Tensor]] = {}
    benches: list[Bench] = []

    def score(step: int) -> dict[str, float]:
        seen[step] = [p.detach().clone() for p in adapter_parameters(benches[0].model).values()]
        return {"avg": {2: 0.9, 4: 0.4}[step]}

    benches.append(
        Bench(tmp_path / "run", QUESTIONS[:16], tuning_score=score, extra=scored_every(2), lora=LORA, **SMALL)
    )
    benches[0].train()
    kept = list(adapter_parameters(benches[0].model).values())
    assert all(torch.equal(one, other) for one, other in zip(kept, seen[2], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(kept, seen[4], strict=True))
