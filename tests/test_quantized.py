"""QLoRA and the 8-bit optimizer, with bitsandbytes (on a CPU too), and memory keys beside LoRA."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

from distill_bench import QUESTIONS, Bench, make_recipe
from sdzero.adapters import adapter_parameters, attach_adapter, is_adapter_folder, lora_config, merged_weights
from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.method.adapter_teacher import AdapterTeacher
from sdzero.method.teacher import fingerprint
from sdzero.models import load_model
from sdzero.recipe import ModelSettings, Recipe
from sdzero.recipe_lora import LoraSettings
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine
from support import micro_recipe

LORA = LoraSettings(rank=4, alpha=8)
QUANTIZED = ModelSettings(device="cpu", quantization="4bit")
SMALL: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 4}
IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def bitsandbytes() -> Any:
    return pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def quantized() -> Any:
    model = load_model("tiny", QUANTIZED)
    attach_adapter(model, lora_config(LORA), seed=1, base="tiny")
    with torch.no_grad():
        for name, parameter in adapter_parameters(model).items():
            if ".lora_B." in name:
                parameter.fill_(0.01)
    return model


def test_after_sampling_the_weights_are_the_same_and_the_gradient_is_whole(bitsandbytes: Any) -> None:
    model = quantized()
    weights = model.model.layers[0].mlp.up_proj.get_base_layer().weight
    assert weights.dtype == torch.uint8
    teacher = AdapterTeacher.beside(model, "start")
    before = teacher.fingerprint
    requests = [Request((5, 6, 7), seed) for seed in range(3)]
    TransformersEngine(model, [1], 0).generate(requests, Sampling(0.7, 8))
    logits = model(input_ids=IDS).logits
    with torch.no_grad():
        of_teacher = teacher.model(input_ids=IDS).logits
    torch.testing.assert_close(logits.detach(), of_teacher, rtol=1e-6, atol=1e-5)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name
        assert parameter.grad is None or parameter.grad.abs().sum() > 0
    assert AdapterTeacher.beside(model, "again").fingerprint == before
    assert teacher.model.model.layers[0].mlp.up_proj.get_base_layer().weight is weights


def test_quantized_weights_are_not_merged(bitsandbytes: Any) -> None:
    with pytest.raises(ValueError, match="cannot be merged"):
        list(merged_weights(quantized()))


def test_a_merged_adapter_would_be_lost_in_4_bits(bitsandbytes: Any) -> None:
    """Why `lora.keep: merged` is refused: small changes do not cross the steps of the 4-bit grid."""
    from bitsandbytes import functional

    base = load_model("tiny", ModelSettings(device="cpu")).model.layers[0].mlp.up_proj.weight.detach()
    packed, state = functional.quantize_4bit(base, quant_type="nf4")
    of_grid = functional.dequantize_4bit(packed, state)
    change = 1e-3 * of_grid.std() * torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
    again = functional.dequantize_4bit(*functional.quantize_4bit(of_grid + change, quant_type="nf4"))
    left = (again - of_grid) @ change.T
    assert float(left.diagonal().sum() / change.square().sum()) < 0.1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"lora": None}, "cannot be trained themselves"),
        ({"lora": {"keep": "merged"}}, "would be the base model"),
        ({"lora": {"teacher": "copy"}}, "lora.teacher"),
        ({"lora": {}, "distill.teacher": "x"}, "distill.teacher"),
        ({"lora": {}, "rollout": {"engine": "vllm"}}, "vLLM"),
    ],
)
def test_what_cannot_go_with_4_bits_is_refused(changes: dict[str, Any], problem: str) -> None:
    values = make_recipe().model_dump(exclude_unset=True) | {"model": {"quantization": "4bit"}}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        values[section] = values[section] | {name: value} if name else value
    with pytest.raises(ValidationError, match=problem):
        Recipe.model_validate(values)


def test_without_bitsandbytes_both_keys_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(UserError, match=r"bitsandbytes is not installed") as caught:
        load_model("tiny", QUANTIZED)
    assert "model.quantization" in str(caught.value)
    assert "sdzero[bitsandbytes]" in str(caught.value)
    with pytest.raises(UserError, match="set optimizer to adamw"):
        Bench(tmp_path / "run", QUESTIONS[:4], optimizer="adamw_8bit", **SMALL)


def test_the_8_bit_optimizer_resumes_to_the_same_weights(bitsandbytes: Any, tmp_path: Path) -> None:
    settings = SMALL | {"optimizer": "adamw_8bit", "checkpoint_every": 1}
    whole = Bench(tmp_path / "whole", QUESTIONS[:8], **settings)
    whole.train()
    state = [v for s in whole.trainer.optimizer.state.values() for v in s.values() if torch.is_tensor(v)]
    assert any(tensor.dtype == torch.uint8 and tensor.numel() >= 4096 for tensor in state)
    cut = Bench(tmp_path / "cut", QUESTIONS[:8], **settings)
    cut.train_until(1)
    again = Bench(tmp_path / "cut", QUESTIONS[:8], **settings)
    assert [row["step"] for row in again.train()] == [2]
    assert fingerprint(again.model) == fingerprint(whole.model)


def test_gradient_checkpointing_trains_the_same_adapter(tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        extra = {"gradient_checkpointing": checkpointing}
        bench = Bench(
            tmp_path / str(checkpointing),
            QUESTIONS[:8],
            lora=LORA,
            extra=extra,
            sync="steps",
            sync_every=1,
            **SMALL,
        )
        bench.train()
        assert bench.model.is_gradient_checkpointing == checkpointing
        found.append(adapter_parameters(bench.model))
    for name, parameter in found[0].items():
        torch.testing.assert_close(found[1][name], parameter, rtol=1e-4, atol=1e-6)


def test_an_adapter_on_bfloat16_weights(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "run", QUESTIONS[:8], dtype=torch.bfloat16, lora=LORA, **SMALL)
    before = {name: p.detach().clone() for name, p in bench.model.named_parameters()}
    logged = bench.train()
    assert all(row["loss"] > 0 and row["grad_norm"] > 0 for row in logged)
    for name, parameter in bench.model.named_parameters():
        is_own = ".lora_" in name
        assert parameter.dtype == (torch.float32 if is_own else torch.bfloat16)
        assert is_own or torch.equal(parameter, before[name])
    assert any(not torch.equal(p, before[name]) for name, p in adapter_parameters(bench.model).items())


@pytest.mark.slow
def test_a_run_with_4_bits(bitsandbytes: Any, tmp_path: Path) -> None:
    changes = {
        "model": {"quantization": "4bit"},
        "lora": {"rank": 4, "dropout": 0.1},
        "data": {"n1": 12, "n2": 8, "test": 2, "tuning": 0},
        "distill": {"rehearsal_weight": 0.0, "sync": "steps", "sync_every": 1, "optimizer": "adamw_8bit"},
        "rft": {"enabled": False},
    }
    folder = tmp_path / "run"
    arguments = ["run", str(micro_recipe(tmp_path, changes)), "-o", str(folder)]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for stage in ("srt/round-1/model", "distill/model"):
        assert is_adapter_folder(folder / stage)
    results = json.loads((folder / "results.json").read_text())
    assert set(results["evaluations"]) == {"base", "srt", "sdzero"}
