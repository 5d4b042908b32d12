"""Adapters inside a model: put in, merged, saved and read, with the base model's weights left alone."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sdzero.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    adapter_parameters,
    attach_adapter,
    has_adapter,
    is_adapter_folder,
    is_adapter_name,
    load_adapter_weights,
    lora_config,
    merge_adapter,
    merged_weight,
    merged_weights,
    plain_state,
    read_adapter_config,
    refuse_sharding,
    save_adapter,
)
from sdzero.errors import UserError
from sdzero.models import load_model, load_to_train_on
from sdzero.recipe import ModelSettings
from sdzero.recipe_lora import LoraSettings
from sdzero.rollout.named_weights import named_weights

IDS = torch.tensor([[1, 2, 3, 4, 5]])
LORA = LoraSettings(rank=2, alpha=6)


def make_model(dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def trained(model: LlamaForCausalLM, settings: LoraSettings = LORA, base: str = "base") -> LlamaForCausalLM:
    """The model with an adapter that does something."""
    model.train(False)
    attach_adapter(model, lora_config(settings), seed=1, base=base)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if ".lora_B." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_new_adapter_changes_nothing_and_alone_is_trained() -> None:
    model = make_model()
    before, numbers = logits(model), torch.get_rng_state()
    attach_adapter(model, lora_config(LORA), seed=1, base="base")
    assert torch.equal(logits(model), before)
    assert torch.equal(torch.get_rng_state(), numbers)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == is_adapter_name(name), name
    layers = {name.rpartition(".lora_")[0].rpartition(".")[2] for name in adapter_parameters(model)}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_its_start_depends_on_the_seed_alone() -> None:
    models = [make_model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.manual_seed(len(models))
        attach_adapter(model, lora_config(LORA), seed=seed, base="base")
    first, same, other = [dict(adapter_parameters(model)) for model in models]
    name = next(name for name in first if ".lora_A." in name)
    assert torch.equal(first[name], same[name])
    assert not torch.equal(first[name], other[name])


def test_merged_is_w_plus_scaled_b_a_by_hand() -> None:
    model = trained(make_model(torch.float64))
    expected = logits(model)
    name = "model.layers.1.mlp.up_proj"
    layer = model.get_submodule(name)
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    by_hand = layer.base_layer.weight + 6.0 / 2 * b @ a
    torch.testing.assert_close(dict(merged_weights(model))[f"{name}.weight"], by_hand.detach())
    merge_adapter(model)
    assert not has_adapter(model)
    torch.testing.assert_close(model.get_submodule(name).weight, by_hand)
    torch.testing.assert_close(logits(model), expected, rtol=1e-12, atol=1e-12)
    assert {name for name, _ in model.named_parameters()} == {n for n, _ in make_model().named_parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_merged_model_is_saved_as_an_ordinary_one(tmp_path: Path) -> None:
    model = trained(make_model())
    expected = logits(model)
    merge_adapter(model)
    model.save_pretrained(tmp_path)
    assert not (tmp_path / ADAPTER_CONFIG).exists()
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), expected, rtol=1e-4, atol=1e-5)


def test_an_engine_is_sent_plain_names_and_merged_weights() -> None:
    model = trained(make_model(torch.float64))
    expected = logits(model)
    sent = dict(named_weights(model))
    other = make_model(torch.float64)
    assert set(sent) == {name for name, _ in other.named_parameters()} | {"lm_head.weight"}
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(sent[name])
    torch.testing.assert_close(logits(other), expected, rtol=1e-12, atol=1e-12)
    assert set(plain_state(model)) == set(other.state_dict())


def test_merged_copies_are_made_one_at_a_time_and_the_model_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = trained(make_model())
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    adapted = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    made: list[object] = []

    def counted(layer: object) -> torch.Tensor:
        made.append(layer)
        return merged_weight(layer)

    monkeypatch.setattr("sdzero.adapters.merged_weight", counted)
    handed = 0
    for name, _ in named_weights(model):
        handed += name in adapted
        assert len(made) == handed, "none is made before it is asked for"
    assert handed == len(adapted) == 14
    for name, parameter in model.named_parameters():
        assert (id(parameter), True) == (before[name][0], torch.equal(parameter, before[name][1])), name


@pytest.mark.parametrize(("size", "kept"), [(1e-4, 0.06), (1e-3, 0.52), (1e-2, 1.0)])
def test_in_bfloat16_merging_keeps_this_share_of_what_the_adapter_adds(size: float, kept: float) -> None:
    """`size` is that of B A beside W. docs/lora.md has the three shares."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=4, hidden_size=512, intermediate_size=512, num_hidden_layers=1)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    attach_adapter(model, lora_config(LoraSettings(rank=64, alpha=64)), seed=1, base="base")
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    weight = layer.get_base_layer().weight.detach().float()
    with torch.no_grad():
        layer.lora_A["default"].weight.normal_()
        layer.lora_B["default"].weight.normal_(std=size * float(weight.std()) / 64**0.5)
    delta = layer.get_delta_weight("default").detach()
    left = merged_weight(layer).float() - weight
    assert float((left * delta).sum() / delta.square().sum()) == pytest.approx(kept, abs=0.03)


def test_in_a_short_type_the_adapter_is_float32() -> None:
    model = trained(make_model(torch.bfloat16))
    assert {parameter.dtype for parameter in adapter_parameters(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    assert model.dtype == torch.bfloat16
    merge_adapter(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def saved(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    base = tmp_path / "base"
    make_model().save_pretrained(base)
    model = trained(make_model(), base=str(base))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(model, folder)
    return folder, logits(model)


def test_peft_itself_reads_what_is_saved(tmp_path: Path) -> None:
    folder, expected = saved(tmp_path)
    assert is_adapter_folder(folder)
    wrapped = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(tmp_path / "base"), str(folder))
    torch.testing.assert_close(logits(wrapped), expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_folder_is_loaded_merged_or_to_be_trained_on(tmp_path: Path) -> None:
    folder, expected = saved(tmp_path)
    settings = ModelSettings(device="cpu")
    merged = load_model(str(folder), settings)
    assert not has_adapter(merged)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-5)
    further = load_to_train_on(str(folder), settings, LORA.model_copy(update={"dropout": 0.5}))
    assert torch.equal(logits(further), expected)
    assert {name for name, p in further.named_parameters() if p.requires_grad} == set(
        adapter_parameters(further)
    )
    assert further.peft_config["default"].lora_dropout == 0.5
    with pytest.raises(UserError, match="rank 2, the recipe has 3"):
        load_to_train_on(str(folder), settings, LoraSettings(rank=3, alpha=6))
    with pytest.raises(UserError, match="on other layers than the recipe names"):
        load_to_train_on(str(folder), settings, LORA.model_copy(update={"target_modules": ["q_proj"]}))


def test_a_second_adapter_is_refused() -> None:
    with pytest.raises(ValueError, match="merge it first"):
        trained(trained(make_model()))


@pytest.mark.parametrize(
    ("modules", "problem"),
    [(["nowhere"], "cannot be put"), (["lm_head"], "output head"), (["embed_tokens"], "not supported")],
)
def test_layers_that_cannot_be_adapted_are_refused(modules: list[str], problem: str) -> None:
    model = make_model()
    with pytest.raises(UserError, match=problem) as caught:
        attach_adapter(model, lora_config(LoraSettings(target_modules=modules)), seed=1, base="base")
    assert "lora.target_modules" in str(caught.value)


@pytest.mark.parametrize("key", ["use_dora", "modules_to_save", "bias"])
def test_other_kinds_of_adapters_are_refused(tmp_path: Path, key: str) -> None:
    folder, _ = saved(tmp_path)
    values = json.loads((folder / ADAPTER_CONFIG).read_text())
    values[key] = {"use_dora": True, "modules_to_save": ["norm"], "bias": "all"}[key]
    (folder / ADAPTER_CONFIG).write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"only plain LoRA.*{key}"):
        read_adapter_config(folder)


def test_a_damaged_or_foreign_file_is_refused(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path)
    model = trained(make_model())
    stored = load_file(folder / ADAPTER_WEIGHTS)
    name = next(iter(stored))
    for changed in ({k: v for k, v in stored.items() if k != name}, stored | {name: torch.zeros(3, 3)}):
        save_file(changed, folder / ADAPTER_WEIGHTS)
        with pytest.raises(UserError, match="other layers or another rank"):
            load_adapter_weights(model, folder)
    (folder / ADAPTER_WEIGHTS).write_bytes(b"short")
    with pytest.raises(UserError, match="cannot be read"):
        load_adapter_weights(model, folder)


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"])
def test_a_launcher_that_cuts_weights_up_is_refused(variable: str) -> None:
    refuse_sharding({variable: "false"})
    with pytest.raises(UserError, match="LoRA does not run under"):
        refuse_sharding({variable: "true"})
