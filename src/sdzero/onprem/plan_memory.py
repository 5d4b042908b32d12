"""Memory of one device, part by part, at the moments at which a stage takes the most.

A moment is a dictionary from part to bytes. Every response is taken to be as long as the recipe allows.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from sdzero.onprem.hardware import GIBIBYTE
from sdzero.onprem.plan_activations import (
    FLOAT,
    backward_working,
    forward_working,
    kept_by_layer,
    kept_by_model,
)
from sdzero.onprem.plan_heads import Head, divergence_head, nll_head
from sdzero.onprem.plan_sampling import Phase, sampling_parts, vllm_bytes
from sdzero.onprem.plan_setting import Setting
from sdzero.onprem.plan_tokens import PHRASE_TOKENS, micro_batch
from sdzero.recipe_base import OptimizerSettings

EIGHT_BITS = 1 + 4 / 256
"""Bytes of a moment of AdamW in 8 bits: a byte, and a float32 for a block of 256 (arXiv 2110.02861)."""

CONTEXT = {"cuda": 1.0 * GIBIBYTE, "cpu": 0.6 * GIBIBYTE}
"""What a process takes before anything of ours: the CUDA context with its kernels and cuBLAS's workspace (300
MB to over 1,000 MB, by PyTorch's maintainers), or the interpreter with its libraries. Assumed."""
EXCHANGE = 0.5 * GIBIBYTE
"""Of NCCL, where there are several devices. Assumed."""

Moment = dict[str, float]


@dataclass(frozen=True)
class Held:
    """What is held of models in training, in bytes on one device."""

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    exchange: float


def moments_of_adamw(setting: Setting, settings: OptimizerSettings) -> float:
    """Bytes of both moments of AdamW, which have the dtype of what is trained.

    In 8 bits, transformers' trainer leaves those of embeddings in float32.
    """
    shape, adapters, short = setting.shape, setting.adapters, settings.optimizer == "adamw_8bit"
    if adapters is not None:
        return 2 * adapters.parameters(shape) * (EIGHT_BITS if short else FLOAT)
    if short:
        return 2 * (FLOAT * shape.head + EIGHT_BITS * (shape.parameters - shape.head))
    return float(2 * setting.size * shape.parameters)


def teacher_of(setting: Setting) -> float:
    """Bytes of the teacher that are on the device throughout phase 2."""
    recipe, shape, adapters = setting.recipe, setting.shape, setting.adapters
    own = recipe.distill
    lora = recipe.lora
    if adapters is not None and lora is not None and lora.teacher == "shared" and own.teacher is None:
        return float(FLOAT * adapters.parameters(shape))
    if setting.teacher_placement == "cpu":
        return 0.0
    exact = FLOAT if own.teacher_decay is not None and setting.size < FLOAT else 0
    whole = setting.weights + exact * shape.parameters
    return whole / (setting.devices if setting.teacher_placement == "sharded" else 1)


def held_of(setting: Setting, settings: OptimizerSettings, with_teacher: bool) -> Held:
    """What training holds on each device."""
    shape, adapters, shards = setting.shape, setting.adapters, setting.shards
    added = 0.0 if adapters is None else float(FLOAT * adapters.parameters(shape))
    trained = float(setting.size * shape.parameters) if adapters is None else added
    exchange = EXCHANGE if setting.devices > 1 and setting.kind == "cuda" else 0.0
    if setting.devices > 1 and setting.parallel == "ddp":
        exchange += trained  # the buckets that gradients are copied to
    return Held(
        weights=setting.weights / shards + added,
        gradients=trained / shards,
        optimizer=moments_of_adamw(setting, settings) / shards,
        teacher=teacher_of(setting) if with_teacher else 0.0,
        exchange=exchange,
    )


@dataclass(frozen=True)
class Batch:
    """What goes through the model at one time: tokens that the student reads, target tokens, and tokens that
    the teacher reads."""

    student: float
    targets: float
    teacher: float = 0.0


def srt_batch(setting: Setting) -> Batch:
    """The largest micro-batch of phase 1: x, two responses and the phrase."""
    recipe = setting.recipe
    longest = recipe.collect.max_new_tokens
    whole = setting.prompt + 2 * longest + PHRASE_TOKENS
    whole = min(whole, recipe.collect.max_context or whole)
    rows = _rows(recipe.srt, whole, setting.devices)
    targets = whole - setting.prompt if recipe.srt.generation_weight else longest
    return Batch(rows * whole, rows * targets)


def rft_batch(setting: Setting) -> Batch:
    """The largest micro-batch of RFT: x and a response."""
    longest = setting.recipe.collect.max_new_tokens
    rows = _rows(setting.recipe.rft, setting.prompt + longest, setting.devices)
    return Batch(rows * (setting.prompt + longest), rows * longest)


def distill_batch(setting: Setting) -> Batch:
    """The largest micro-batch of phase 2; what is over `max_context` is dropped, so nothing longer trains."""
    settings = setting.recipe.distill
    response = float(settings.max_new_tokens)
    if settings.max_context is not None:
        room = (settings.max_context - setting.prompt - PHRASE_TOKENS) / 2
        response = max(1.0, min(response, room))
    teacher = setting.prompt + 2 * response + PHRASE_TOKENS
    rows = _rows(settings, teacher, setting.devices)
    return Batch(rows * (setting.prompt + response), rows * response, rows * teacher)


def rehearsed_tokens(setting: Setting) -> float:
    """Tokens of rehearsed traces that a micro-batch reads in the same pass; 0 if there are none, or if they
    have a pass of their own."""
    settings = setting.recipe.distill
    if not settings.rehearsal_weight or settings.micro_batch_tokens is not None or setting.devices > 1:
        return 0.0
    steps = settings.batch_size // micro_batch(settings, setting.devices)
    rows = math.ceil(settings.rehearsal_batch_size / steps)
    return rows * (setting.prompt + 2 * setting.recipe.collect.max_new_tokens + PHRASE_TOKENS)


def _rows(settings: OptimizerSettings, tokens: float, devices: int) -> int:
    rows = micro_batch(settings, devices)
    if settings.micro_batch_tokens is None:
        return rows
    return max(1, min(rows, int(settings.micro_batch_tokens // tokens)))


def training_moments(
    setting: Setting, settings: OptimizerSettings, batch: Batch, head: Head, with_teacher: bool
) -> Iterator[tuple[str, Moment]]:
    """The moments of a step: the teacher's pass, the student's, the loss, and the backward pass at its start
    and at its end."""
    shape, size, adapters = setting.shape, setting.size, setting.adapters
    held = held_of(setting, settings, with_teacher)
    checkpointing = setting.recipe.model.gradient_checkpointing
    of_layer = kept_by_layer(shape, size, adapters, setting.packed)
    kept_tokens = batch.student + (rehearsed_tokens(setting) if with_teacher else 0.0)
    kept = kept_tokens * kept_by_model(shape, size, adapters, setting.packed, checkpointing)
    hidden = size * shape.width * batch.targets
    micro = micro_batch(settings, setting.devices)
    several_passes = micro < settings.batch_size // setting.devices or settings.micro_batch_tokens is not None
    base: Moment = {
        "weights": held.weights + _gathered(setting),
        "teacher": held.teacher,
        "gradients": held.gradients if several_passes else 0.0,
        "optimizer": held.optimizer,
        "exchange": held.exchange,
        "vllm": vllm_bytes(setting, sampling=False),
        "activations": kept,
    }
    if with_teacher:
        away = setting.teacher_placement != "device" and held.teacher < setting.weights
        streamed = 2 * size * shape.layer_parameters if away else 0.0
        working = batch.teacher * (forward_working(shape, size) + size * shape.width)
        yield "teacher", base | {"working": working + hidden + streamed + _dequantized(setting)}
        if away:  # the loss needs the teacher's whole head
            base["teacher"] = held.teacher + size * shape.head
    working = batch.student * forward_working(shape, size)
    yield "student", base | {"working": working + _dequantized(setting)}
    yield "loss", base | {"loss": head.forward + (2 if with_teacher else 1) * hidden}
    working = batch.student * backward_working(shape, size) + _dequantized(setting)
    remade = batch.student * of_layer if checkpointing else 0.0
    base["teacher"] = held.teacher
    yield (
        "backward",
        base | {"loss": head.kept + head.backward + hidden, "activations": kept + remade, "working": working},
    )
    working += size * batch.student * shape.width
    if adapters is None:
        # Embeddings that are tied have two gradients, of which one waits; a sum has its new part beside it.
        beside = shape.head if shape.tied else (shape.layer_parameters if several_passes else 0)
        working += size * beside * (2 if shape.tied and several_passes else 1)
    whole = held.gradients + (_gathered(setting) if adapters is None else 0.0)
    yield (
        "end of backward",
        base | {"gradients": whole, "activations": batch.student * of_layer, "working": working},
    )


def _gathered(setting: Setting) -> float:
    """FSDP2: two layers' whole weights, one in use and one on its way, and what is outside the layers."""
    if setting.shards == 1:
        return 0.0
    shape = setting.shape
    outside = shape.head * (1 if shape.tied else 2)
    return setting.size * (2 * shape.layer_parameters + outside) * (1 - 1 / setting.shards)


def _dequantized(setting: Setting) -> float:
    """In 4 bits a linear layer's weights are made whole for its product."""
    if setting.recipe.model.quantization is None:
        return 0.0
    return float(setting.size * max(linear.parameters for linear in setting.shape.linears))


def stage_moments(setting: Setting) -> dict[str, dict[str, Moment]]:
    """By stage and moment, what one device holds, the process's own context included."""
    recipe, shape, size, kind = setting.recipe, setting.shape, setting.size, setting.kind
    trains_head = setting.adapters is None
    found: dict[str, Iterator[tuple[str, Moment]]] = {}
    if recipe.srt.checkpoint is None:
        found["collect"] = _sampling(setting, "initial", "revise")
        batch = srt_batch(setting)
        head = nll_head(shape, size, kind, trains_head, batch.targets)
        found["srt"] = training_moments(setting, recipe.srt, batch, head, False)
    found["distill"] = _phase_2(setting)
    if recipe.rft.enabled:
        batch = rft_batch(setting)
        head = nll_head(shape, size, kind, trains_head, batch.targets)
        found["rft"] = training_moments(setting, recipe.rft, batch, head, False)
    found["evaluate"] = _sampling(setting, "evaluate", "evaluate: revise")
    context = {"context": CONTEXT[kind]}
    return {
        stage: {name: context | {part: size for part, size in parts.items() if size} for name, parts in own}
        for stage, own in found.items()
    }


def _phase_2(setting: Setting) -> Iterator[tuple[str, Moment]]:
    settings = setting.recipe.distill
    held = held_of(setting, settings, True)
    whole = setting.weights if setting.shards > 1 else 0.0  # gathered for the sampler
    yield (
        "sampling",
        {
            "weights": held.weights + whole,
            "teacher": held.teacher,
            "optimizer": held.optimizer,
            "exchange": held.exchange,
            **sampling_parts(setting, "student"),
        },
    )
    batch = distill_batch(setting)
    trains_head = setting.adapters is None
    head = divergence_head(setting.shape, setting.size, setting.kind, trains_head, settings, batch.targets)
    yield from training_moments(setting, settings, batch, head, True)


def _sampling(setting: Setting, *phases: Phase) -> Iterator[tuple[str, Moment]]:
    for phase in phases:
        yield phase, {"weights": setting.weights, **sampling_parts(setting, phase)}


def total(moment: Moment) -> float:
    """Bytes of all parts."""
    return sum(moment.values())


def peak_moment(moments: dict[str, Moment]) -> tuple[str, Moment]:
    """The name of the moment that takes the most, and its parts."""
    return max(moments.items(), key=lambda item: total(item[1]))
