"""Sharing of prefills, and ended rows' places taken by waiting requests: cheaper, and the same responses."""

import random
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sdzero.errors import UserError
from sdzero.rollout.decode_step import ModelStep
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.row_cache import RowCache
from sdzero.rollout.transformers_engine import TransformersEngine

VOCABULARY, PAD, END = 23, 0, 1
SAMPLED = Sampling(temperature=2.0, max_new_tokens=40)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=96,
        initializer_range=0.6,
    )
    return LlamaForCausalLM(config).eval().double()  # so that no token hangs on rounding


def make_requests(prompts: int, each: int, longest: int = 30) -> list[Request]:
    rng = random.Random(7)
    chosen = [
        tuple(rng.randrange(2, VOCABULARY) for _ in range(rng.randint(1, longest))) for _ in range(prompts)
    ]
    return [Request(prompt, 50 * n + k) for n, prompt in enumerate(chosen) for k in range(each)]


class CountingModel:
    """Counts the shapes that the model's forward pass is given."""

    def __init__(self, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shapes: list[tuple[int, ...]] = []
        inner = type(model.model).forward

        def forward(module: Any, *args: Any, **kwargs: Any) -> Any:
            self.shapes.append(tuple(kwargs["input_ids"].shape))
            return inner(module, *args, **kwargs)

        monkeypatch.setattr(type(model.model), "forward", forward)


@pytest.mark.parametrize("cache", ["growing", "dynamic"])
def test_equal_prompts_are_prefilled_once(
    model: PreTrainedModel, cache: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = make_requests(3, each=8)
    alone = [TransformersEngine(model, [END], PAD, 1, cache).generate([r], SAMPLED)[0] for r in requests]
    counted = CountingModel(model, monkeypatch)
    together = TransformersEngine(model, [END], PAD, 64, cache).generate(requests, SAMPLED)
    assert together == alone
    width = max(len(request.prompt_ids) for request in requests)
    assert counted.shapes[0] == (3, width)
    assert all(shape[1] == 1 for shape in counted.shapes[1:])


@pytest.mark.parametrize(("prompts", "each"), [(30, 1), (8, 4)])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_refilled_rows_give_the_same_responses(
    model: PreTrainedModel, prompts: int, each: int, slots: int
) -> None:
    requests = make_requests(prompts, each)
    sampling = Sampling(temperature=2.0, max_new_tokens=14)
    expected = TransformersEngine(model, [END, 5], PAD, 64).generate(requests, sampling)
    refilled = TransformersEngine(model, [END, 5], PAD, slots, refill=True).generate(requests, sampling)
    assert refilled == expected
    assert {response.stop_reason for response in expected} == {"end", "length"}


def test_refilling_takes_fewer_steps(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = make_requests(64, 1)
    monkeypatch.setattr("sdzero.rollout.transformers_engine.make_step", lambda model, *_: ModelStep(model))
    counted = CountingModel(model, monkeypatch)
    steps = {}
    for refill in (False, True):
        counted.shapes.clear()
        TransformersEngine(model, [END], PAD, 8, refill=refill).generate(requests, SAMPLED)
        steps[refill] = len([shape for shape in counted.shapes if shape[1] == 1])
        assert max(shape[0] for shape in counted.shapes) == 8
    assert steps[True] < 0.8 * steps[False]


def test_refilling_through_the_models_own_forward_pass(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = make_requests(30, 1)
    expected = TransformersEngine(model, [END], PAD, 5, refill=True).generate(requests, SAMPLED)
    monkeypatch.setattr("sdzero.rollout.transformers_engine.make_step", lambda model, *_: ModelStep(model))
    assert TransformersEngine(model, [END], PAD, 5, refill=True).generate(requests, SAMPLED) == expected


def test_columns_that_are_padding_to_all_rows_are_forgotten(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    forget = RowCache.forget_columns

    def spy(cache: RowCache, count: int) -> None:
        forget(cache, count)
        held.append(cache.length)

    monkeypatch.setattr(RowCache, "forget_columns", spy)
    requests = make_requests(120, 1)
    TransformersEngine(model, [END], PAD, 4, refill=True).generate(requests, SAMPLED)
    longest = max(len(request.prompt_ids) for request in requests) + SAMPLED.max_new_tokens
    assert len(held) > 3
    assert max(held) <= longest


@pytest.mark.parametrize("options", [{"packed": True}, {"refill": True}])
def test_options_that_need_the_growing_cache_say_so(model: PreTrainedModel, options: dict[str, bool]) -> None:
    with pytest.raises(UserError, match=r"packed|refilled"):
        TransformersEngine(model.float(), [END], PAD, cache="dynamic", **options)  # type: ignore[arg-type]
    model.double()


def test_weights_that_cannot_be_packed_are_refused(model: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="packed"):
        TransformersEngine(model, [END], PAD, packed=True)  # it is in float64
