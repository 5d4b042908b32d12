import random
from dataclasses import replace

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sdzero.errors import UserError
from sdzero.rollout.drawing import draw_tokens
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine

VOCABULARY, CONTEXT, WINDOW = 37, 64, 6
PAD, END = 0, 1
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "pad_token_id": PAD,
    "eos_token_id": END,
    "bos_token_id": None,
    # Far from the usual 0.02, so that logits differ clearly and no argmax is a tie.
    "initializer_range": 0.6,
}


def make_model(architecture: str) -> PreTrainedModel:
    torch.manual_seed(3)
    if architecture == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    elif architecture == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8))
    else:
        layers = ["sliding_attention", "full_attention"]
        model = Olmo3ForCausalLM(Olmo3Config(**SIZES, sliding_window=WINDOW, layer_types=layers))
    return model.eval()


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return make_model("llama")


def make_requests(count: int, longest: int = 20) -> list[Request]:
    rng = random.Random(5)
    lengths = [rng.randint(1, longest) for _ in range(count)]
    return [
        Request(tuple(rng.randrange(2, VOCABULARY) for _ in range(length)), seed=100 + index)
        for index, length in enumerate(lengths)
    ]


def greedy_of_generate(model: PreTrainedModel, prompt: tuple[int, ...], steps: int) -> tuple[int, ...]:
    """What transformers samples for the prompt alone, so without any padding."""
    ids_BT = torch.tensor([prompt])
    sampled = model.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, max_new_tokens=steps
    )
    return tuple(sampled[0, len(prompt) :].tolist())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("cache", ["growing", "dynamic"])
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "olmo3"])
def test_greedy_is_that_of_generate(architecture, cache, attention):
    model = make_model(architecture)
    model.set_attn_implementation(attention)
    # The window of Olmo 3 is shorter than most prompts and than every full response, and the growing
    # cache starts with less room than the longest response needs.
    requests = make_requests(9)
    engine = TransformersEngine(model, [END], PAD, batch_size=4, cache=cache)
    responses = engine.generate(requests, Sampling(temperature=0, max_new_tokens=44))
    expected = [greedy_of_generate(model, request.prompt_ids, 44) for request in requests]
    assert [response.token_ids for response in responses] == expected
    assert len({len(ids) for ids in expected}) > 1, "rows should end at different steps"


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_the_static_cache_gives_the_same_responses(architecture):
    model = make_model(architecture).double()
    requests = make_requests(9) + make_requests(9)  # every prompt twice
    sampling = Sampling(temperature=2.0, max_new_tokens=40)
    ends = [END, 3, 4, 5, 6]
    growing = TransformersEngine(model, ends, PAD, batch_size=11).generate(requests, sampling)
    static = TransformersEngine(model, ends, PAD, batch_size=11, cache="static").generate(requests, sampling)
    assert static == growing
    assert len({len(response.token_ids) for response in growing}) > 5, "the batch should be halved"


def test_the_static_cache_refuses_sliding_layers():
    engine = TransformersEngine(make_model("olmo3"), [END], PAD, cache="static")
    with pytest.raises(UserError, match="full attention"):
        engine.generate(make_requests(2), Sampling(temperature=0, max_new_tokens=4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_captured_graphs_give_the_same_responses():
    model = make_model("llama").cuda()
    requests = make_requests(20)
    sampling = Sampling(temperature=0, max_new_tokens=30)
    growing = TransformersEngine(model, [END], PAD, batch_size=16).generate(requests, sampling)
    static = TransformersEngine(model, [END], PAD, batch_size=16, cache="static").generate(requests, sampling)
    assert static == growing


def test_sampled_tokens_follow_the_distribution():
    torch.manual_seed(0)
    logits_V = torch.randn(12) * 2
    draws = 40_000
    numbers = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    for sampling in (
        Sampling(temperature=1.0, max_new_tokens=1),
        Sampling(temperature=0.7, max_new_tokens=1),
        Sampling(temperature=1.3, max_new_tokens=1, top_p=0.8),
        Sampling(temperature=1.0, max_new_tokens=1, top_k=3),
        Sampling(temperature=0.9, max_new_tokens=1, top_k=5, top_p=0.7),
    ):
        exact = exact_distribution(logits_V.double(), sampling)
        tokens = draw_tokens(logits_V.expand(draws, -1), numbers, sampling)
        share_V = torch.bincount(tokens, minlength=12) / draws
        # Evenly spread numbers miss each share by at most one draw at either border.
        torch.testing.assert_close(share_V.double(), exact, atol=2 / draws, rtol=0)


def exact_distribution(logits_V: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution by the definition, one token at a time."""
    probabilities = (logits_V / sampling.temperature).softmax(-1).tolist()
    likeliest = sorted(range(len(probabilities)), key=lambda token: -probabilities[token])
    if sampling.top_k:
        likeliest = likeliest[: sampling.top_k]
    total = sum(probabilities[token] for token in likeliest)
    kept, reached = [], 0.0
    for token in likeliest:
        if reached >= sampling.top_p * total:
            break
        kept.append(token)
        reached += probabilities[token]
    exact = torch.zeros(len(probabilities), dtype=torch.float64)
    for token in kept:
        exact[token] = probabilities[token] / reached
    return exact


def test_seeds_of_the_engine_sample_the_model_distribution(llama):
    prompt = (5, 9, 4, 7)
    sampling = Sampling(temperature=3.0, max_new_tokens=1)
    draws = 4_000
    responses = TransformersEngine(llama, [END], PAD, batch_size=draws).generate(
        [Request(prompt, seed) for seed in range(draws)], sampling
    )
    with torch.no_grad():
        exact_V = (llama(torch.tensor([prompt])).logits[0, -1].double() / 3.0).softmax(-1)
    counts_V = torch.bincount(torch.tensor([r.token_ids[0] for r in responses]), minlength=VOCABULARY)
    likely = exact_V * draws >= 5
    chi_square = ((counts_V - exact_V * draws) ** 2 / (exact_V * draws))[likely].sum().item()
    degrees = int(likely.sum()) - 1
    assert degrees > 10
    # The 99.99% point of chi square is below mean + 5 standard deviations at these degrees of freedom.
    assert chi_square < degrees + 5 * (2 * degrees) ** 0.5


def test_edge_numbers_never_draw_an_impossible_token():
    logits = torch.tensor([[-1e4, 0.0, 0.0, -1e4]])
    sampling = Sampling(temperature=1.0, max_new_tokens=1)
    below_one = 1 - 2**-53
    drawn = [
        draw_tokens(logits, torch.tensor([u], dtype=torch.float64), sampling).item() for u in (0.0, below_one)
    ]
    assert drawn == [1, 2]


@pytest.mark.parametrize("cache", ["growing", "dynamic"])
def test_same_requests_give_the_same_responses(llama, cache):
    requests = make_requests(12)
    sampling = Sampling(temperature=1.5, max_new_tokens=40, top_p=0.95)
    first, second = (
        TransformersEngine(llama, [END], PAD, batch_size=5, cache=cache).generate(requests, sampling)
        for _ in range(2)
    )
    assert first == second
    other_seeds = [replace(request, seed=request.seed + 1000) for request in requests]
    assert (
        TransformersEngine(llama, [END], PAD, batch_size=5, cache=cache).generate(other_seeds, sampling)
        != first
    )


@pytest.mark.parametrize("architecture", ["llama", "olmo3"])
def test_a_response_does_not_depend_on_its_neighbours(architecture):
    model = make_model(architecture).double()
    requests = make_requests(10)
    sampling = Sampling(temperature=2.0, max_new_tokens=30)
    together = TransformersEngine(model, [END], PAD, batch_size=10).generate(requests, sampling)
    alone = [TransformersEngine(model, [END], PAD).generate([request], sampling)[0] for request in requests]
    backwards = TransformersEngine(model, [END], PAD, batch_size=3).generate(requests[::-1], sampling)
    assert together == alone == backwards[::-1]


def test_a_shorter_limit_cuts_the_same_response(llama):
    model = make_model("llama").double()
    requests = make_requests(6)
    long, short = (
        TransformersEngine(model, [END], PAD).generate(
            requests, Sampling(temperature=2.0, max_new_tokens=steps)
        )
        for steps in (30, 7)
    )
    assert [response.token_ids for response in short] == [response.token_ids[:7] for response in long]


def test_end_tokens_are_kept_and_nothing_follows(llama):
    ends = [3, 11, END]
    requests = make_requests(40)
    responses = TransformersEngine(llama, ends, PAD).generate(
        requests, Sampling(temperature=3.0, max_new_tokens=12)
    )
    stopped_by = set()
    for response in responses:
        assert not set(response.token_ids[:-1]) & set(ends)
        if response.stop_reason == "end":
            stopped_by.add(response.token_ids[-1])
        else:
            assert response.token_ids[-1] not in ends
            assert len(response.token_ids) == 12
    assert stopped_by == set(ends)
    assert any(response.stop_reason == "length" for response in responses)


def test_an_end_on_the_last_step_is_an_end(llama):
    prompt = (5, 9, 4, 7)
    (response,) = TransformersEngine(llama, [END], PAD).generate(
        [Request(prompt, 0)], Sampling(temperature=0, max_new_tokens=3)
    )
    (again,) = TransformersEngine(llama, [response.token_ids[2]], PAD).generate(
        [Request(prompt, 0)], Sampling(temperature=0, max_new_tokens=3)
    )
    assert response.stop_reason == "length"
    assert again.token_ids == response.token_ids
    assert again.stop_reason == "end"


class RefusesToRun(torch.nn.Module):
    def forward(self, *args, **kwargs):
        raise AssertionError("the model ran before the requests were checked")


@pytest.mark.parametrize(
    ("length", "steps", "fits"),
    [(CONTEXT - 4, 4, True), (CONTEXT - 3, 4, False), (CONTEXT, 1, False), (0, 4, False)],
)
def test_prompts_that_do_not_fit_are_refused_before_sampling(length, steps, fits):
    model = make_model("llama")
    engine = TransformersEngine(model, [END], PAD, batch_size=1)
    requests = [Request((5, 6), 0), Request((7,) * length, 1)]
    sampling = Sampling(temperature=1.0, max_new_tokens=steps)
    if fits:
        assert len(engine.generate(requests, sampling)) == 2
        return
    model.model = RefusesToRun()
    with pytest.raises(UserError) as caught:
        engine.generate(requests, sampling)
    assert caught.value.where == "request 1"


@pytest.mark.parametrize(
    "change", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_new_tokens": 0}]
)
def test_impossible_settings_are_refused(llama, change):
    sampling = replace(Sampling(temperature=1.0, max_new_tokens=4), **change)
    with pytest.raises(UserError):
        TransformersEngine(llama, [END], PAD).generate([Request((5,), 0)], sampling)


def test_changed_weights_are_used_and_noted():
    model = make_model("llama")
    engine = TransformersEngine(model, [END], PAD)
    requests, sampling = make_requests(4), Sampling(temperature=0, max_new_tokens=8)
    before = engine.generate(requests, sampling)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    engine.take_weights(model)
    after = engine.generate(requests, sampling)
    assert engine.weight_version == 1
    assert {response.weight_version for response in before} == {0}
    assert {response.weight_version for response in after} == {1}
    assert [r.token_ids for r in before] != [r.token_ids for r in after]


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored_and_weights_stay_trainable(training):
    model = make_model("llama").train(training)
    TransformersEngine(model, [END], PAD).generate(
        make_requests(2), Sampling(temperature=1.0, max_new_tokens=2)
    )
    assert model.training is training
    model(torch.tensor([[4, 5]]), labels=torch.tensor([[4, 5]])).loss.backward()
    assert model.lm_head.weight.grad is not None
