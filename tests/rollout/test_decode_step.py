"""The decode step of our own computes what the model's forward pass computes, and knows where it cannot."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdzero import tiny
from sdzero.rollout.decode_step import FastStep, ModelStep, can_pack, fits, make_step
from sdzero.rollout.row_cache import RowCache

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
}
WINDOW = 6
LAYERS = ["sliding_attention", "full_attention", "sliding_attention"]
MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama 3 rope": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SIZES,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            },
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "qwen3, sliding": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZES, head_dim=8, use_sliding_window=True, sliding_window=WINDOW, layer_types=LAYERS)
    ),
    "olmo3": lambda: Olmo3ForCausalLM(Olmo3Config(**SIZES, sliding_window=WINDOW, layer_types=LAYERS)),
}


def make(name: str) -> PreTrainedModel:
    torch.manual_seed(1)
    model = MODELS[name]().eval()
    with torch.no_grad():  # norms and biases that do something
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.inference_mode()
def logits_of(
    step: Any, model: PreTrainedModel, starts: list[int], width: int, steps: int
) -> list[torch.Tensor]:
    """Logits of a prefill and of some steps on fixed tokens; `starts` is the padding of each prompt."""
    rows = len(starts)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (rows, width + steps), generator=generator)
    starts_L = torch.tensor(starts)
    positions = (torch.arange(width + steps) - starts_L[:, None]).clamp(min=0)
    padded = starts_L if any(starts) else None
    mask = torch.arange(width) >= starts_L[:, None] if any(starts) else None
    cache = RowCache(model.config.num_hidden_layers, rows)
    found = [step.prefill(ids[:, :width], positions[:, :width], mask, cache, torch.arange(rows))]
    for column in range(width, width + steps):
        found.append(step(ids[:, column], positions[:, column], padded, cache))
    return found


@pytest.mark.parametrize("starts", [[0, 0, 0], [0, 4, 9], [2]], ids=["equal", "padded", "one"])
@pytest.mark.parametrize("name", list(MODELS))
def test_the_fast_step_is_the_forward_pass(name: str, starts: list[int]) -> None:
    model = make(name).double()
    assert fits(model)
    # RMS norms compute in float32 even in a float64 model, so logits agree to float32's rounding.
    for ours, theirs in zip(
        logits_of(FastStep(model, len(starts), packed=False), model, starts, 11, 12),
        logits_of(ModelStep(model), model, starts, 11, 12),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 37])
def test_on_the_embedded_model_it_gives_the_same_bits(rows: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float32).eval()
    starts = [row % 3 for row in range(rows)]
    for ours, theirs in zip(
        logits_of(FastStep(model, rows, packed=False), model, starts, 13, 9),
        logits_of(ModelStep(model), model, starts, 13, 9),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("rows", [1, 5, 8, 19])
@pytest.mark.parametrize("name", ["llama with biases", "qwen3", "olmo3"])
def test_packed_weights_alter_rounding_alone(name: str, rows: int) -> None:
    model = make(name)
    starts = [row % 4 for row in range(rows)]
    packed = logits_of(FastStep(model, rows, packed=True), model, starts, 9, 5)
    plain = logits_of(FastStep(model, rows, packed=False), model, starts, 9, 5)
    exact = logits_of(ModelStep(model.double()), model, starts, 9, 5)
    for ours, theirs, true in zip(packed, plain, exact, strict=True):
        scale = true.abs().max()
        assert ours.shape == true.shape
        assert (ours - true).abs().max() / scale < 1e-5
        # No worse than the plain product, but for luck.
        assert (ours - true).abs().max() <= 4 * (theirs - true).abs().max() + 1e-6 * scale


def test_models_that_were_changed_go_through_their_own_forward_pass() -> None:
    class Adapter(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    def adapt(model: Any) -> None:
        model.model.layers[1].self_attn.q_proj = Adapter(32, 32, bias=False)

    def hook(model: Any) -> None:
        model.model.layers[0].mlp.register_forward_hook(lambda *_: None)

    def patch(model: Any) -> None:
        model.model.norm.forward = lambda x: x

    def eager(model: Any) -> None:
        model.set_attn_implementation("eager")

    for change in (adapt, hook, patch, eager, lambda model: model.bfloat16()):
        model = make("llama")
        assert isinstance(make_step(model, 4), FastStep)
        change(model)
        assert not fits(model)
        assert not can_pack(model)
        assert isinstance(make_step(model, 4), ModelStep)


def test_small_models_are_not_packed_unless_asked() -> None:
    model = make("llama")
    assert not make_step(model, 4).packed
    assert make_step(model, 4, packed=can_pack(model)).packed is can_pack(model)
