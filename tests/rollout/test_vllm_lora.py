"""vLLM with a model that has a LoRA adapter, on a CPU (`make test-vllm`): it is sent merged weights, and
samples what the student with its adapter on samples."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rollout.test_vllm_real import GREEDY, OWN, Side, vllm_recipe
from sdzero.adapters import (
    adapter_parameters,
    attach_adapter,
    is_adapter_name,
    lora_config,
    plain_name,
)
from sdzero.engines import shared_vllm
from sdzero.errors import UserError
from sdzero.models import load_model, load_tokenizer
from sdzero.recipe import Recipe
from sdzero.recipe_lora import LoraSettings
from sdzero.rollout.vllm_engine import SharedVllm
from sdzero.rollout.vllm_package import installed
from support import micro_recipe, read_jsonl, sdzero

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(installed() is None, reason="vLLM is not installed: `make test-vllm` installs it"),
]

LORA = LoraSettings(rank=4, alpha=8)


def adapted(recipe: Recipe) -> PreTrainedModel:
    """The embedded model with an adapter that changes most of what it says."""
    model = load_model("tiny", recipe.model)
    attach_adapter(model, lora_config(LORA), seed=1, base="tiny")
    train_adapter(model, seed=2, size=0.3)
    return model


def train_adapter(model: PreTrainedModel, seed: int, size: float = 0.1) -> None:
    """Change the adapter, and nothing else, as a training step does."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="module", params=["colocated", "server"])
def shared(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedVllm]:
    folder = tmp_path_factory.mktemp(request.param)
    own = shared_vllm(vllm_recipe(mode=request.param), load_tokenizer("tiny"), folder, lambda line: None)
    yield own
    own.close()


@pytest.fixture
def side(shared: SharedVllm) -> Side:
    recipe = vllm_recipe()
    return Side(shared, recipe, adapted(recipe))


def greedy_without_adapter(side: Side) -> list[tuple[int, ...]]:
    plain = Side(side.shared, vllm_recipe(), load_model("tiny", vllm_recipe().model))
    return [response.token_ids for response in plain.reference.generate(side.requests, GREEDY)]


def test_greedy_tokens_are_those_of_the_student_with_its_adapter_on(side: Side) -> None:
    side.assert_greedy_agrees()
    assert side.shared.largest_difference < 1e-3
    sampled = [response.token_ids for response in side.engine.generate(side.requests, GREEDY)]
    differing = sum(own != off for own, off in zip(sampled, greedy_without_adapter(side), strict=True))
    assert differing > len(sampled) / 2, "an adapter that is off would say something else"


def test_after_a_step_of_the_adapter_the_new_one_samples(side: Side) -> None:
    before = [response.token_ids for response in side.engine.generate(side.requests, GREEDY)]
    for version in (1, 2):
        train_adapter(side.model, seed=10 + version)
        side.engine.take_weights(side.model)
        side.reference.take_weights(side.model)
        side.assert_greedy_agrees()
        assert {r.weight_version for r in side.engine.generate(side.requests[:2], GREEDY)} == {version}
    assert [response.token_ids for response in side.engine.generate(side.requests, GREEDY)] != before


def test_a_push_leaves_the_students_weights_as_they_are(side: Side) -> None:
    before = {name: parameter.detach().clone() for name, parameter in side.model.named_parameters()}
    objects = {name: id(parameter) for name, parameter in side.model.named_parameters()}
    side.engine.generate(side.requests[:2], GREEDY)
    after = dict(side.model.named_parameters())
    assert {name: id(parameter) for name, parameter in after.items()} == objects
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_weights_pushed_with_the_adapter_off_are_caught(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model's weights under the right names: what a push that forgot the adapter would send."""

    def adapter_off(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in model.named_parameters():
            if not is_adapter_name(name):
                yield plain_name(name), parameter.detach()
        yield "lm_head.weight", model.get_output_embeddings().weight.detach()

    for module in ("vllm_colocated", "named_weights"):
        monkeypatch.setattr(f"sdzero.rollout.{module}.named_weights", adapter_off)
    with pytest.raises(UserError, match="push of version 0 its log-probs differ"):
        side.engine.generate(side.requests, GREEDY)
    monkeypatch.undo()
    side.assert_greedy_agrees()


def test_a_run_with_lora_samples_with_vllm(tmp_path: Path) -> None:
    """Every stage trains an adapter; each step of phase 2 samples with the weights of the step before."""
    recipe = micro_recipe(
        tmp_path,
        {
            "rollout": {"engine": "vllm", "batch_size": 16, "vllm": OWN},
            "lora": {"rank": 4},
            "data": {"n1": 12, "n2": 8, "test": 2, "tuning": 0},
            "distill": {"rehearsal_weight": 0.0, "sync": "steps", "sync_every": 1, "learning_rate": 1e-2},
            "srt": {"learning_rate": 1e-2},
            "rft": {"enabled": False},
        },
    )
    run = tmp_path / "run"
    done = sdzero("run", recipe, "-o", run, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = sorted((run / "distill/rollouts").glob("step-*.jsonl"))
    assert [{row["weight_version"] for row in read_jsonl(file)} for file in steps] == [{0}, {1}]
    assert (run / "distill/adapter/adapter_model.safetensors").is_file()
    assert (run / "results.json").exists()
