"""What the tests of data-parallel training run in each process, and how they compare what it gives."""

import os
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from transformers import AutoModelForCausalLM

from distill_bench import QUESTIONS, Bench, make_rehearsal, perturbed
from sdzero import ranks, tiny
from sdzero.ledger import Ledger
from sdzero.method.roles import Roles
from sdzero.method.sharded_teacher import ShardedTeacher
from sdzero.method.srt import train_weighted
from sdzero.method.streamed_teacher import StreamedTeacher
from sdzero.method.teacher import Teacher
from sdzero.models import load_tokenizer, save_model
from sdzero.recipe import ChatSettings, PhraseSettings
from sdzero.recipe_base import OptimizerSettings
from sdzero.sharded import is_sharded, whole, without_zero
from support import read_jsonl, without_seconds

FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}

METRICS = ("step", "loss", "grad_norm", "learning_rate", "reward", "tokens", "divergence_r0", "divergence_r1")


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: whole(without_zero(model, name, p)).clone() for name, p in model.named_parameters()}


def teacher_weights(teacher: Teacher) -> dict[str, torch.Tensor]:
    if isinstance(teacher, StreamedTeacher):  # its model has no weights outside a pass
        return {name: weight.clone() for name, weight in teacher.weights().items()}
    return weights_of(teacher.model)


def tiny_model(dtype: torch.dtype = torch.float64) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=dtype)


def assert_equal_weights(found: dict[str, Any], expected: dict[str, Any], tolerance: float) -> None:
    """Both have the same weights, up to the tolerance."""
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=tolerance)


def ledger_of(folder: Path) -> dict[tuple[str, str], Any]:
    """What was counted, less the seconds, by stage and key."""
    rows = read_jsonl(folder / "ledger.jsonl")
    found = {(row["stage"], row["key"]): without_seconds(row) for row in rows}
    assert len(found) == len(rows), "each thing is counted once"
    return found


def without_fsdp(work: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """As several processes work by default: DDP."""
    return dict(work(*arguments, **keywords))


def with_fsdp(work: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """The same with FSDP2, as `accelerate launch` sets it up."""
    os.environ.update(FSDP2)
    return dict(work(*arguments, **keywords))


def with_exact_norms(work: Any, *arguments: Any, **keywords: Any) -> dict[str, Any]:
    """With norms in float64: the model's own go through float32, where a third of a gradient is rounded."""

    def exact(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        found: torch.Tensor = norm.weight * (hidden * scale)
        return found

    type(tiny_model().model.norm).forward = exact
    return dict(work(*arguments, **keywords))


def phase_2(
    folder: Path,
    stop_after: int | None = None,
    questions: int = 10,
    dtype: torch.dtype = torch.float64,
    **changes: Any,
) -> dict[str, Any]:
    """Three steps on ten questions, or fewer: `stop_after` ends the training as a kill does."""
    settings: dict[str, Any] = {
        "batch_size": 4,
        "micro_batch_size": 1,
        "learning_rate": 1e-3,
        "checkpoint_every": 2,
        "sync": "steps",
        "sync_every": 2,
        "rehearsal_weight": 0.3,
        "rehearsal_batch_size": 3,
    }
    bench = Bench(
        folder,
        QUESTIONS[:questions],
        teacher=None if "lora" in changes else perturbed(tiny_model(dtype)),
        dtype=dtype,
        rehearsal=True,
        **settings | changes,
    )
    start, teacher_start = weights_of(bench.model), weights_of(bench.teacher.model)
    metrics: list[dict[str, Any]] = []
    log = bench.trainer.log

    def keep(values: dict[str, float], *more: Any) -> None:
        log(values, *more)
        if "loss" in values:
            row = {"step": bench.trainer.state.global_step} | values | bench.trainer._finished_metrics
            metrics.append({key: row[key] for key in METRICS})

    bench.trainer.log = keep  # type: ignore[method-assign]
    if stop_after is not None:
        from sdzero.method import distill

        of_step = distill.StepRollouts.of_step

        def killed(self: Any, step: int, *more: Any) -> Any:
            if step == stop_after:
                raise KeyboardInterrupt
            return of_step(self, step, *more)

        distill.StepRollouts.of_step = killed  # type: ignore[method-assign]
        try:
            bench.train()
        except KeyboardInterrupt:
            return {"reported": bench.logged}
        raise AssertionError("it was not stopped")
    bench.train()
    return {
        "start": start,
        "teacher_start": teacher_start,
        "student": weights_of(bench.model),
        "teacher": teacher_weights(bench.teacher),
        "syncs": bench.teacher.sync_count,
        "metrics": metrics,
        "reported": bench.logged,
        "sharded": is_sharded(bench.model),
    }


def srt(
    folder: Path,
    micro_batch_tokens: int | None = None,
    dtype: torch.dtype = torch.float64,
    tied: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """Nine sequences, in batches of four."""
    with ranks.turn_of_first() as is_mine:
        if is_mine:
            folder.mkdir()
    model, tokenizer = tiny_model(dtype), load_tokenizer("tiny")
    if not tied:
        model.config.get_text_config().tie_word_embeddings = False
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    start = weights_of(model)
    sequences = make_rehearsal(Roles(tokenizer, PhraseSettings(), ChatSettings()))[:9]
    settings = OptimizerSettings(
        learning_rate=1e-3, batch_size=4, micro_batch_size=4, micro_batch_tokens=micro_batch_tokens
    )
    metrics: list[dict[str, Any]] = []
    steps = train_weighted(
        model,
        tokenizer,
        sequences,
        settings,
        epochs=1,
        checkpoint_every=2,
        output_dir=folder / "checkpoints",
        seed=1,
        log=metrics.append,
        ledger=Ledger(folder / "ledger.jsonl"),
        **changes,
    )
    save_model(model, tokenizer, folder / "model")
    forward = "the model's own" if "forward" not in model.__dict__ else "another"
    return {
        "start": start,
        "student": weights_of(model),
        "steps": steps,
        "metrics": metrics,
        "forward": forward,
        "sharded": is_sharded(model),
    }


def sharded_teacher(folder: Path, **changes: Any) -> dict[str, Any]:
    """Phase 2 with FSDP2 and a sharded teacher; also what of the teacher this process held, in bytes."""
    seen: dict[str, list[int]] = {"between": [], "inside": [], "joins": []}
    place, run, join = ShardedTeacher.place, ShardedTeacher.run, ShardedTeacher.join

    def placed(self: Any, accelerator: Any) -> None:
        place(self, accelerator)
        for layer in self.model.model.layers:
            layer.register_forward_pre_hook(lambda *_: seen["inside"].append(bytes_held(self.model)))

    def observed(self: Any, work: Any) -> Any:
        found = run(self, work)
        seen["between"].append(bytes_held(self.model))
        return found

    def joined(self: Any, *arguments: Any) -> None:
        seen["joins"].append(ranks.rank())
        join(self, *arguments)

    ShardedTeacher.place = placed  # type: ignore[method-assign]
    ShardedTeacher.run = observed  # type: ignore[method-assign]
    ShardedTeacher.join = joined  # type: ignore[method-assign]
    found = with_fsdp(phase_2, folder, teacher_placement="sharded", **changes)
    return found | seen | {"whole": sum(8 * weight.numel() for weight in found["start"].values())}


def bytes_held(model: torch.nn.Module) -> int:
    """What this process holds of a sharded model: its shards, and what is gathered of other processes'."""
    units = [unit for unit in model.modules() if isinstance(unit, FSDPModule)]
    groups: dict[int, Any] = {
        id(group): group for unit in units for group in unit._get_fsdp_state()._fsdp_param_groups
    }
    held = 0
    for parameter in (parameter for group in groups.values() for parameter in group.fsdp_params):
        held += parameter._sharded_param_data.untyped_storage().size()
        if hasattr(parameter, "_unsharded_param"):
            held += parameter._unsharded_param.untyped_storage().size()
    return held
