"""The memory model against what torch keeps, the package's own constants, and numbers worked by hand."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, Olmo3Config, Qwen3Config

from sdzero.adapters import attach_adapter, lora_config
from sdzero.method import chunked_nll, divergence, head_products, srt
from sdzero.method.hidden import hidden_states
from sdzero.method.training import training_arguments
from sdzero.onprem import plan_heads, plan_sampling
from sdzero.onprem.hardware import Hardware, hardware_named
from sdzero.onprem.model_shape import PUBLIC, SHIPPED, ModelShape, read_shape, shape_of
from sdzero.onprem.plan_activations import Adapters, kept_by_model
from sdzero.onprem.plan_heads import divergence_head, nll_head
from sdzero.onprem.plan_memory import EXCHANGE, held_of, peak_moment, stage_moments, total
from sdzero.onprem.plan_sampling import cache_columns
from sdzero.onprem.plan_setting import FOUR_BITS, Setting
from sdzero.onprem.plan_tokens import micro_batch
from sdzero.recipe import Recipe
from sdzero.recipe_base import OptimizerSettings
from sdzero.recipe_io import load_recipe
from sdzero.recipe_lora import LoraSettings
from sdzero.rollout import decode_step, drawing, row_cache, vllm_arguments

ROOT = Path(__file__).resolve().parents[2]
MATH = ROOT / "recipes/qwen3-4b-math.yaml"
FAMILIES = {"qwen3": Qwen3Config, "llama": LlamaConfig, "olmo3": Olmo3Config}
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "tie_word_embeddings": True,
}


def setting(hardware: str = "1xH100-80GB", parallel: Any = "ddp", *overrides: str) -> Setting:
    recipe = load_recipe(MATH, overrides)
    return Setting(recipe, shape_of(recipe.model.path), hardware_named(hardware), parallel)


# ---- the model's sizes ----


@pytest.mark.parametrize("name", SHIPPED)
def test_parameters_are_those_of_the_model(name: str) -> None:
    folder = ROOT / "src/sdzero/architectures" / SHIPPED[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shape = shape_of(name)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    assert shape.layer_parameters == layer


def test_parameters_of_the_table_are_the_published_ones() -> None:
    """Billions, from the model cards."""
    found = {name: round(shape.parameters / 1e9, 1) for name, shape in PUBLIC.items()}
    assert found["Qwen/Qwen3-8B"] == 8.2
    assert found["Qwen/Qwen3-14B"] == 14.8
    assert found["Qwen/Qwen3-32B"] == 32.8
    assert found["meta-llama/Llama-3.1-8B-Instruct"] == 8.0


def test_biases_and_windows_are_read(tmp_path: Path) -> None:
    """Qwen2 has biases on q, k and v; Olmo 3 sees all keys in every fourth layer."""
    config = AutoConfig.for_model("qwen2", **SIZES)
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert read_shape(tmp_path / "config.json").parameters == sum(p.numel() for p in model.parameters())
    windows = shape_of("allenai/Olmo-3-7B-Instruct").windows
    assert windows[:4] == (4096, 4096, 4096, None)
    assert len(windows) == 32


# ---- what a forward pass keeps ----


def allocated(work: Callable[[], Any]) -> list[int]:
    """Bytes of tensors that the work allocated and that are alive, after each time that this changed."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = profile.profiler.kineto_results.events()
    return list(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@contextmanager
def kept_bytes(model: torch.nn.Module) -> Iterator[list[int]]:
    """Bytes of the distinct tensors that autograd keeps, but for parameters and integers."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, torch.Tensor] = {}
    found: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own and tensor.is_floating_point():
            seen[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield found
    found.append(sum(tensor.untyped_storage().nbytes() for tensor in seen.values()))


@pytest.mark.parametrize("lora", [False, True], ids=["all", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_activations_are_what_autograd_keeps(
    family: str, dtype: torch.dtype, lora: bool, tmp_path: Path
) -> None:
    config = FAMILIES[family](**SIZES)
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    if lora:
        attach_adapter(model, lora_config(LoraSettings(rank=4, alpha=8)), seed=0, base="none")
    model.train(True)
    ids_BT = torch.arange(2 * 48).reshape(2, 48)
    with kept_bytes(model) as found:
        hidden_states(model, ids_BT, torch.arange(96)).sum()
    shape = read_shape(tmp_path / "config.json")
    adapters = Adapters(4) if lora else None
    size = torch.finfo(dtype).bits // 8
    expected = ids_BT.numel() * kept_by_model(shape, size, adapters, packed=False, checkpointing=False)
    assert expected == pytest.approx(found[0], rel=0.04)


def test_checkpointing_keeps_the_inputs_of_layers(tmp_path: Path) -> None:
    config = Qwen3Config(**SIZES)
    config.save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)
    model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    model.train(True)
    ids_BT = torch.arange(2 * 48).reshape(2, 48)
    outputs = []
    found = allocated(lambda: outputs.append(hidden_states(model, ids_BT, torch.arange(96))))[-1]
    found -= outputs[0].untyped_storage().nbytes()
    shape = read_shape(tmp_path / "config.json")
    expected = ids_BT.numel() * kept_by_model(shape, 4, None, packed=False, checkpointing=True)
    assert expected == pytest.approx(found, rel=0.1)
    assert expected < ids_BT.numel() * kept_by_model(shape, 4, None, packed=False, checkpointing=False) / 5


# ---- the same numbers as elsewhere in the package ----


def test_constants_are_those_of_the_code_that_they_describe() -> None:
    assert plan_heads.CHUNK_LOGITS["cpu"] == divergence.CHUNK_LOGITS["cpu"]
    assert plan_heads.CHUNK_LOGITS["cuda"] == divergence.CHUNK_LOGITS["default"]
    assert plan_heads.BLOCK_LOGITS["cpu"] == head_products.BLOCK_LOGITS["cpu"]
    assert plan_heads.BLOCK_LOGITS["cuda"] == head_products.BLOCK_LOGITS["default"]
    assert plan_heads.LOGITS_AT_A_TIME == srt.LOGITS_AT_A_TIME
    assert plan_sampling.ROOM_AHEAD == row_cache.ROOM_AHEAD
    assert plan_sampling.COLOCATED_SHARE == vllm_arguments.COLOCATED_SHARE
    assert plan_sampling.SERVER_SHARE == vllm_arguments.SERVER_SHARE
    assert plan_sampling.PACK_FROM == decode_step.PACK_FROM
    assert plan_sampling.DRAWN_AT_A_TIME["cpu"] == drawing.NUMBERS_AT_A_TIME
    assert plan_sampling.DRAWN_AT_A_TIME["cuda"] == drawing.NUMBERS_AT_A_TIME_ON_GPU
    distill = load_recipe(MATH).distill
    for vocabulary in (352, 32_768, 151_936):
        own = plan_heads.chunk_tokens(distill, "cpu", vocabulary)
        assert own == divergence.automatic_chunk("cpu", vocabulary)


@pytest.mark.parametrize(("batch", "micro", "processes"), [(32, 32, 1), (12, 6, 3), (64, 8, 2), (6, 6, 2)])
def test_micro_batches_are_the_trainers(
    batch: int, micro: int, processes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = OptimizerSettings(learning_rate=1.0, batch_size=batch, micro_batch_size=micro)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    arguments = training_arguments(
        own, tmp_path, epochs=1, checkpoint_every=1, seed=0, gradient_checkpointing=False, use_cpu=True
    )
    assert micro_batch(own, processes) == arguments["per_device_train_batch_size"]


def test_the_cache_grows_as_the_engines_does() -> None:
    """One layer that is fed a prompt of 40 tokens and then 200 more, one by one."""
    layer = row_cache.GrowingLayer()
    layer.update(torch.zeros(2, 1, 40, 4), torch.zeros(2, 1, 40, 4))
    rooms = [layer.keys.shape[2]]
    for _ in range(200):
        layer.append(torch.zeros(2, 1, 4), torch.zeros(2, 1, 4))
        if layer.keys.shape[2] != rooms[-1]:
            rooms.append(layer.keys.shape[2])
    assert cache_columns(40, 200) == rooms


# ---- a loss over the vocabulary ----


def test_the_head_of_the_divergence_takes_what_is_predicted() -> None:
    tokens, width, vocabulary = 64, 32, 40_000
    shape = ModelShape("", "qwen3", width, 8, 1, 1, 8, vocabulary, True, (None,))
    hidden_TD = torch.randn(tokens, width, requires_grad=True)
    head_VD = torch.randn(vocabulary, width, requires_grad=True)
    teacher = torch.randn(tokens, width), torch.randn(vocabulary, width)
    distill = load_recipe(MATH, ["distill.chunk_tokens=16"]).distill

    def loss() -> None:
        divergence.divergence_from_hidden(hidden_TD, teacher[0], head_VD, teacher[1], "reverse", 16)

    expected = divergence_head(shape, 4, "cpu", True, distill, tokens).forward
    assert expected == pytest.approx(max(allocated(loss)), rel=0.15)


def test_the_head_of_phase_1_takes_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, width, vocabulary = 64, 32, 40_000
    shape = ModelShape("", "qwen3", width, 8, 1, 1, 8, vocabulary, True, (None,))
    hidden_TD = torch.randn(tokens, width, requires_grad=True)
    head_VD = torch.randn(vocabulary, width, requires_grad=True)
    targets_T, weights_T = torch.arange(tokens), torch.ones(tokens)
    monkeypatch.setattr(plan_heads, "LOGITS_AT_A_TIME", 16 * vocabulary)

    def loss() -> None:
        chunked_nll.weighted_nll_sum(hidden_TD, head_VD, None, targets_T, weights_T, 16)

    expected = nll_head(shape, 4, "cpu", True, tokens).forward
    assert expected == pytest.approx(max(allocated(loss)), rel=0.15)


# ---- worked by hand ----


def test_what_training_holds_worked_by_hand() -> None:
    """Qwen3-4B in bfloat16: 2 bytes each of weights, gradients, teacher and both moments."""
    one, numbers = setting(), 4_022_468_096
    held = held_of(one, one.recipe.distill, with_teacher=True)
    assert (held.weights, held.gradients, held.teacher) == (2 * numbers,) * 3
    assert held.optimizer == 4 * numbers
    assert held.exchange == 0
    eight = setting("8xH100-80GB")
    assert held_of(eight, eight.recipe.srt, with_teacher=False).exchange == EXCHANGE + 2 * numbers
    sharded = setting("8xH100-80GB", "fsdp2")
    held = held_of(sharded, sharded.recipe.distill, with_teacher=True)
    assert held.weights == held.gradients == numbers / 4
    assert held.teacher == 2 * numbers
    short = setting("1xH100-80GB", "ddp", "distill.optimizer=adamw_8bit")
    embeddings = 151_936 * 2560
    expected = 2 * (4 * embeddings + (numbers - embeddings) * (1 + 4 / 256))
    assert held_of(short, short.recipe.distill, False).optimizer == expected


def test_adapters_worked_by_hand() -> None:
    """Rank 16 on all linear layers: 16 * (in + out) of each, in float32; the teacher has adapters alone."""
    one = setting("1xH100-80GB", "ddp", "lora.rank=16")
    layer = 16 * (2 * (2560 + 4096) + 2 * (2560 + 1024) + 3 * (2560 + 9728))
    held = held_of(one, one.recipe.distill, with_teacher=True)
    assert held.gradients == held.teacher == 4 * 36 * layer
    assert held.optimizer == 8 * 36 * layer
    some = Setting(
        load_recipe(MATH, ["lora.rank=16", "lora.target_modules=[q_proj]"]), one.shape, one.hardware
    )
    assert held_of(some, some.recipe.distill, True).gradients == 4 * 36 * 16 * (2560 + 4096)
    four_bits = setting("1xH100-80GB", "ddp", "lora.rank=16", "model.quantization=4bit")
    inside = 36 * one.shape.layer_products
    rest = one.shape.parameters - inside
    assert four_bits.weights == FOUR_BITS * inside + 2 * rest
    assert four_bits.weights < 0.45 * one.weights


def test_the_parts_add_up_and_the_largest_moment_is_the_stages() -> None:
    moments = stage_moments(setting())
    assert list(moments) == ["collect", "srt", "distill", "rft", "evaluate"]
    name, parts = peak_moment(moments["srt"])
    assert total(parts) == max(total(own) for own in moments["srt"].values())
    assert parts == moments["srt"][name]
    assert all(size > 0 for own in moments.values() for part in own.values() for size in part.values())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("model.gradient_checkpointing=false", "activations"),
        ("distill.micro_batch_size=2", "activations"),
        ("distill.chunk_tokens=4096", "loss"),
        ("distill.contrast=0", None),
    ],
)
def test_what_a_switch_changes_is_the_part_it_is_about(change: str, part: str | None) -> None:
    before = stage_moments(setting())["distill"]["loss"]
    after = stage_moments(setting("1xH100-80GB", "ddp", change))["distill"]["loss"]
    differing = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert part in differing if part else not differing
    if part:
        assert after[part] > before[part]


def test_a_cpu_has_its_memory_once_for_all_processes() -> None:
    from sdzero.onprem.plan_switches import room_of

    one = setting("cpu")
    several = Setting(one.recipe, one.shape, Hardware(one.hardware.device, 2))
    assert room_of(several) == room_of(one) / 2


def test_vllm_beside_the_trainer_takes_its_share_unless_it_sleeps() -> None:
    engine = ("rollout.engine=vllm", "rollout.vllm.gpu_memory_utilization=0.4")
    awake = stage_moments(setting("1xH100-80GB", "ddp", *engine))["distill"]
    assert awake["loss"]["vllm"] == awake["sampling"]["vllm"] == 0.4 * 80e9
    asleep = stage_moments(setting("1xH100-80GB", "ddp", *engine, "rollout.vllm.sleep=true"))["distill"]
    assert "vllm" not in asleep["loss"]
    assert asleep["sampling"]["vllm"] == 0.4 * 80e9


def test_recipes_that_ship_are_planned() -> None:
    for file in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe: Recipe = load_recipe(file)
        moments = stage_moments(Setting(recipe, shape_of(recipe.model.path), hardware_named("cpu")))
        assert all(total(own) > 0 for stage in moments.values() for own in stage.values())
