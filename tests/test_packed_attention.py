"""Packed rows against the same sequences alone: three architectures, both passes, window, checkpointing."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdzero.errors import UserError
from sdzero.method.hidden import hidden_states
from sdzero.models import attention_of
from sdzero.packed_attention import PACKED_SDPA, check_packing, enable_packing, packed_arguments, packs_rows
from sdzero.recipe import ModelSettings

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.3,
}
MAKERS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "olmo3": lambda: Olmo3ForCausalLM(Olmo3Config(**SIZES, sliding_window=4)),  # three of four layers slide
}
LENGTHS = (11, 1, 7, 3)


def make(name, attention="sdpa"):
    torch.manual_seed(0)
    model = MAKERS[name]().double().train()
    model.set_attn_implementation(attention)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", sorted(MAKERS))
def test_packed_sequences_are_as_if_alone(name, checkpointing):
    sequences = [torch.randint(2, 61, (1, length)) for length in LENGTHS]
    alone, packed = make(name), make(name)
    enable_packing(packed)
    if checkpointing:
        packed.gradient_checkpointing_enable()
    expected = torch.cat([hidden_states(alone, ids, torch.arange(ids.shape[1])) for ids in sequences])
    found = hidden_states(packed, torch.cat(sequences, dim=1), torch.arange(sum(LENGTHS)), LENGTHS)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    direction = torch.randn(expected.shape, dtype=torch.float64)
    (expected * direction).sum().backward()
    (found * direction).sum().backward()
    for (which, own), other in zip(packed.named_parameters(), alone.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(own.grad, other.grad, rtol=1e-7, atol=1e-9, msg=which)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_padded_batches_and_sampling_stay_bit_for_bit(name):
    plain, packing = make(name).eval(), make(name).eval()
    enable_packing(packing)
    ids = torch.randint(2, 61, (3, 9))
    mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9, [0] + [1] * 8])
    for arguments in ({}, {"attention_mask": mask}):
        assert torch.equal(packing(ids, **arguments).logits, plain(ids, **arguments).logits)
    sampled = [
        model.generate(ids, attention_mask=mask, max_new_tokens=6, do_sample=False)
        for model in (plain, packing)
    ]
    assert torch.equal(*sampled)


def test_neighbours_would_be_seen_without_the_lengths():
    """What the check in `check_packing` is for."""
    model = make("qwen3").eval()
    ids = torch.cat([torch.randint(2, 61, (1, length)) for length in LENGTHS], dim=1)
    enable_packing(model)
    together = hidden_states(model, ids, torch.arange(sum(LENGTHS)))
    apart = hidden_states(model, ids, torch.arange(sum(LENGTHS)), LENGTHS)
    torch.testing.assert_close(together[:11], apart[:11])
    assert not torch.allclose(together[11:], apart[11:])


def test_attention_and_layers_that_cannot_are_refused():
    with pytest.raises(UserError, match="attention `eager` cannot read packed sequences"):
        enable_packing(make("llama", "eager"))
    strange = make("llama")
    strange.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UserError, match="layers of linear_attention"):
        enable_packing(strange)


def test_a_model_that_mixes_its_sequences_is_refused():
    model = make("qwen3")
    enable_packing(model)
    decoder = model.get_decoder()
    forward = decoder.forward
    # A model that does not hand the lengths on to its attention.

    def careless(segment_lengths=None, attention_mask=None, position_ids=None, **rest):
        return forward(**rest)

    decoder.forward = careless
    with pytest.raises(UserError, match="they see one another"):
        check_packing(model)


def test_lengths_that_do_not_sum_up_raise():
    model = make("qwen3")
    enable_packing(model)
    with pytest.raises(ValueError, match="sequences of 5 tokens"):
        model.get_decoder()(
            torch.tensor([[2, 3, 4, 5]]), **packed_arguments([2, 3], model) | {"position_ids": None}
        )


def test_the_recipe_says_which_attention():
    assert attention_of(ModelSettings(packing="on", device="cpu")) == PACKED_SDPA
    assert attention_of(ModelSettings(packing="auto", device="cpu")) == "sdpa"
    assert attention_of(ModelSettings(packing="off", device="cpu")) == "sdpa"
    assert attention_of(ModelSettings(attention="flash_attention_2", device="cpu")) == "flash_attention_2"
    assert not packs_rows(make("llama"))
    with pytest.raises(ValueError, match="eager"):
        ModelSettings(packing="on", attention="eager")
    with pytest.raises(ValueError, match="always packs"):
        ModelSettings(packing="off", attention="flash_attention_2")
