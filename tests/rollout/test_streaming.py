"""Responses that are handed out as they end: the same as those of `generate`, earlier."""

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from sdzero.errors import UserError
from sdzero.rollout.engine import Request, Response, Sampling, StreamingEngine, streamed
from sdzero.rollout.transformers_engine import TransformersEngine

VOCABULARY, PAD, END = 19, 0, 1
SAMPLED = Sampling(temperature=2.0, max_new_tokens=16)
GREEDY = Sampling(temperature=0, max_new_tokens=16)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=PAD,
        eos_token_id=END,
        bos_token_id=None,
        initializer_range=0.6,
    )
    return LlamaForCausalLM(config).eval()


def make_requests(count: int) -> list[Request]:
    rng = random.Random(5)
    lengths = [rng.randint(1, 12) for _ in range(count)]
    return [
        Request(tuple(rng.randrange(2, VOCABULARY) for _ in range(length)), seed=index)
        for index, length in enumerate(lengths)
    ]


@pytest.mark.parametrize(
    ("sampling", "batch_size", "cache"),
    [
        (SAMPLED, 7, "growing"),
        (SAMPLED, 7, "dynamic"),
        (GREEDY, 7, "growing"),
        (SAMPLED, 1, "growing"),
        (SAMPLED, 100, "growing"),
    ],
)
def test_what_is_streamed_is_what_is_generated(
    model: PreTrainedModel, sampling: Sampling, batch_size: int, cache: str
) -> None:
    requests = make_requests(20)
    engine = TransformersEngine(model, [END, 5], PAD, batch_size, cache)  # type: ignore[arg-type]
    groups = list(engine.stream(requests, sampling))
    pairs = [pair for group in groups for pair in group]
    assert sorted(index for index, _ in pairs) == list(range(20)), "each once"
    responses = [dict(pairs)[index] for index in range(20)]
    assert responses == engine.generate(requests, sampling)
    assert len(groups) > 1
    assert [] not in groups
    assert len({response.token_ids for response in responses}) > 1
    assert {response.stop_reason for response in responses} == {"end", "length"}


def test_in_a_batch_the_shortest_come_first_and_the_cut_ones_last(model: PreTrainedModel) -> None:
    groups = list(TransformersEngine(model, [END, 5], PAD).stream(make_requests(20), SAMPLED))
    lengths = [[len(response.token_ids) for _, response in group] for group in groups]
    assert [len(set(group)) for group in lengths] == [1] * len(groups)
    assert [group[0] for group in lengths] == sorted(group[0] for group in lengths)
    reasons = [{response.stop_reason for _, response in group} for group in groups]
    assert reasons == [{"end"}] * (len(groups) - 1) + [{"length"}]


def test_a_response_is_handed_out_before_the_next_step(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    forward = model.forward

    def counted(*arguments: object, **keywords: object) -> object:
        steps.append(1)
        return forward(*arguments, **keywords)

    monkeypatch.setattr(model, "forward", counted)
    seen = []
    for group in TransformersEngine(model, [END, 5], PAD).stream(make_requests(20), SAMPLED):
        # One pass of the model for each token of the longest so far, and none beyond.
        assert len(steps) == len(group[0][1].token_ids)
        seen.append(len(steps))
    assert len(seen) > 3


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was_even_by_who_stops_early(model: PreTrainedModel, training: bool) -> None:
    engine = TransformersEngine(model, [END, 5], PAD)
    model.train(training)
    try:
        stream = engine.stream(make_requests(20), SAMPLED)
        next(stream)
        # Between two groups the caller's own arithmetic is as ever.
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        stream.close()
        assert model.training is training
        assert list(engine.stream([], SAMPLED)) == []
        assert model.training is training
    finally:
        model.eval()


def test_faults_are_told_before_anything_is_sampled(model: PreTrainedModel) -> None:
    engine = TransformersEngine(model, [END], PAD, batch_size=1)
    with pytest.raises(UserError) as caught:
        next(engine.stream([Request((5,), 0), Request((), 1)], SAMPLED))
    assert caught.value.where == "request 1"


class Plain:
    """An engine that cannot stream: the response is the prompt's ids, doubled."""

    weight_version = 0
    max_context = None

    def __init__(self) -> None:
        self.asked: list[tuple[list[Request], Sampling]] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        self.asked.append((list(requests), sampling))
        return [Response(2 * request.prompt_ids, "end") for request in requests]


def test_an_engine_without_a_stream_gives_all_at_once() -> None:
    engine, requests = Plain(), [Request((7,), 0), Request((3, 4), 1), Request((7,), 2)]
    assert not isinstance(engine, StreamingEngine)
    assert list(streamed(engine, requests, GREEDY)) == [
        [(0, Response((7, 7), "end")), (1, Response((3, 4, 3, 4), "end")), (2, Response((7, 7), "end"))]
    ]
    assert engine.asked == [(requests, GREEDY)]


class Backwards(Plain):
    """Streams: one response a group, from the last request to the first."""

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[tuple[int, Response]]]:
        for index in reversed(range(len(requests))):
            yield [(index, Response(requests[index].prompt_ids, "end"))]


def test_an_engine_with_a_stream_is_asked_for_it_and_for_no_more_than_is_taken() -> None:
    engine, requests = Backwards(), [Request((number,), number) for number in range(3)]
    assert isinstance(engine, StreamingEngine)
    groups = streamed(engine, requests, GREEDY)
    assert next(groups) == [(2, Response((2,), "end"))]
    assert list(groups) == [[(1, Response((1,), "end"))], [(0, Response((0,), "end"))]]
    assert engine.asked == []


def test_the_engine_of_the_package_streams(model: PreTrainedModel) -> None:
    engine, requests = TransformersEngine(model, [END, 5], PAD, batch_size=7), make_requests(20)
    groups = list(streamed(engine, requests, SAMPLED))
    assert groups == list(engine.stream(requests, SAMPLED))
    assert len(groups) > 3, "more groups than batches"
