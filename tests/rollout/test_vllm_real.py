"""The vLLM engine with vLLM itself, on a CPU (`make test-vllm`): it samples what the transformers engine
samples, with the weights that it was sent, and stale ones are caught."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from distill_bench import QUESTIONS, make_recipe
from sdzero.engines import shared_vllm, transformers_engines, vllm_engines
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.models import load_model, load_tokenizer
from sdzero.recipe import Recipe
from sdzero.recipe_rollout import RolloutSettings, VllmSettings
from sdzero.rollout.engine import Request, RolloutEngine, Sampling
from sdzero.rollout.named_weights import architecture
from sdzero.rollout.vllm_engine import SharedVllm
from sdzero.rollout.vllm_package import installed
from support import environment, micro_recipe, read_jsonl, sdzero

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(installed() is None, reason="vLLM is not installed: `make test-vllm` installs it"),
]

GREEDY, SAMPLED = Sampling(0.0, 48), Sampling(1.0, 48, top_p=0.95, top_k=40)
CHANGE = 1e-3
OWN = {"enforce_eager": True, "kv_cache_gigabytes": 0.125}


def vllm_recipe(**vllm: Any) -> Recipe:
    rollout = RolloutSettings(engine="vllm", batch_size=16, vllm=VllmSettings(**OWN | vllm))
    return make_recipe().model_copy(update={"rollout": rollout})


class Side:
    """The transformers engine and the vLLM engine on one model."""

    def __init__(self, shared: SharedVllm, recipe: Recipe, model: PreTrainedModel) -> None:
        tokenizer = load_tokenizer("tiny")
        self.shared, self.model = shared, model
        self.roles = Roles(tokenizer, recipe.phrases, recipe.chat)
        self.reference = transformers_engines(recipe, tokenizer)(model, self.roles)
        self.engine: RolloutEngine = vllm_engines(recipe, shared)(model, self.roles)
        self.requests = [
            Request(tuple(self.roles.generator_prompt(q)), 2**62 + i) for i, q in enumerate(QUESTIONS)
        ]

    @property
    def backend(self) -> Any:
        return self.shared._backend

    def train(self, size: float = CHANGE) -> None:
        """Change the weights as a training step does, and say so to both engines."""
        torch.manual_seed(int(self.engine.weight_version))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(size * torch.randn_like(parameter))
        self.engine.take_weights(self.model)
        self.reference.take_weights(self.model)

    def assert_greedy_agrees(self, requests: list[Request] | None = None) -> None:
        asked = requests or self.requests
        own, other = self.engine.generate(asked, GREEDY), self.reference.generate(asked, GREEDY)
        assert [response.token_ids for response in own] == [response.token_ids for response in other]
        assert own == other, "stop reasons and weight versions too"


def small_model(kind: str) -> PreTrainedModel:
    """A random model with the vocabulary of the embedded one; its weights are large, so that its choices
    are clear."""
    torch.manual_seed(5)
    sizes: dict[str, Any] = {
        "vocab_size": len(load_tokenizer("tiny")),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    if kind == "qwen3":
        return Qwen3ForCausalLM(Qwen3Config(**sizes)).eval()
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


# ---- in this process ----


@pytest.fixture(scope="module")
def colocated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedVllm]:
    """One vLLM in this process, as a run has it."""
    recipe = vllm_recipe()
    folder = tmp_path_factory.mktemp("colocated")
    shared = shared_vllm(recipe, load_tokenizer("tiny"), folder, lambda line: None)
    yield shared
    shared.close()


@pytest.fixture
def side(colocated: SharedVllm) -> Side:
    """The embedded model, as it was shipped, on the shared vLLM."""
    recipe = vllm_recipe()
    return Side(colocated, recipe, load_model("tiny", recipe.model))


def test_the_same_greedy_tokens_as_the_transformers_engine(side):
    side.assert_greedy_agrees()
    ends = {response.stop_reason for response in side.engine.generate(side.requests, GREEDY)}
    assert "end" in ends


def test_a_response_is_cut_at_the_limit_without_an_end(side):
    short = Sampling(0.0, 5)
    responses = side.engine.generate(side.requests, short)
    assert [r.token_ids for r in responses] == [
        r.token_ids for r in side.reference.generate(side.requests, short)
    ]
    assert {(len(r.token_ids), r.stop_reason) for r in responses} >= {(5, "length")}
    assert all(side.roles.end_token_id not in r.token_ids for r in responses if r.stop_reason == "length")


def test_a_response_depends_on_its_seed_and_not_on_its_neighbours(side):
    together = side.engine.generate(side.requests, SAMPLED)
    backwards = side.engine.generate(side.requests[::-1], SAMPLED)[::-1]
    alone = [side.engine.generate([request], SAMPLED)[0] for request in side.requests[:6]]
    assert together == backwards
    assert together[:6] == alone
    others = [Request(request.prompt_ids, request.seed + 1000) for request in side.requests]
    assert side.engine.generate(others, SAMPLED) != together


def test_samples_follow_the_models_distribution(side):
    """Of many first tokens after one prompt, each token's share is its probability."""
    prompt, count = side.requests[0].prompt_ids, 600
    sampled = side.engine.generate([Request(prompt, i) for i in range(count)], Sampling(1.3, 1))
    with torch.no_grad():
        logits_V = side.model(torch.tensor([prompt])).logits[0, -1].double()
    expected_V = (logits_V / 1.3).softmax(-1)
    shares_V = torch.bincount(torch.tensor([r.token_ids[0] for r in sampled]), minlength=len(expected_V))
    error_V = (shares_V / count - expected_V).abs()
    assert (error_V <= 5 * (expected_V * (1 - expected_V) / count).sqrt() + 2 / count).all()


def test_responses_stream_while_others_go_on(side):
    groups = list(side.engine.stream(side.requests, SAMPLED))
    assert len(groups) > 5
    streamed = {index: response for group in groups for index, response in group}
    assert sorted(streamed) == list(range(len(side.requests)))
    assert [streamed[i] for i in range(len(side.requests))] == side.engine.generate(side.requests, SAMPLED)


def test_a_stream_that_is_given_up_leaves_nothing_behind(side):
    stream = side.engine.stream(side.requests, SAMPLED)
    next(stream)
    stream.close()
    assert not side.backend._llm.llm_engine.has_unfinished_requests()
    side.assert_greedy_agrees()


def test_after_a_step_the_new_weights_sample_and_the_probe_passes(side):
    before = side.engine.generate(side.requests, GREEDY)
    for version in (1, 2):
        side.train(0.02)
        side.assert_greedy_agrees()
        assert side.shared.largest_difference < 1e-3
        after = side.engine.generate(side.requests[:3], SAMPLED)
        assert {response.weight_version for response in after} == {version}
    assert [r.token_ids for r in side.engine.generate(side.requests, GREEDY)] != [r.token_ids for r in before]


def test_a_revision_reuses_the_prefix_of_the_initial_response(side):
    asked = [Request((request.prompt_ids * 9)[:120], request.seed) for request in side.requests]
    pairs = zip(asked, side.engine.generate(asked, Sampling(1.5, 200)), strict=True)
    long, initial = max(pairs, key=lambda pair: len(pair[1].token_ids))
    prompt = side.roles.reviser_prompt(long.prompt_ids, initial.token_ids, 0)
    (output,) = [output for group in side.backend._run([(prompt, _one_token())]) for _, output in group]
    block = side.backend._llm.llm_engine.vllm_config.cache_config.block_size
    kept = len(long.prompt_ids) + len(side.roles.without_end(initial.token_ids)) - 1
    assert output.num_cached_tokens == kept // block * block > len(long.prompt_ids)


def _one_token() -> Any:
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=1, detokenize=False)


def test_a_push_that_is_skipped_is_caught(side, monkeypatch):
    side.engine.generate(side.requests, GREEDY)
    push = side.backend.push
    monkeypatch.setattr(
        side.backend, "push", lambda model, stamp: side.backend._llm.llm_engine.set_weight_version(stamp)
    )
    side.train()
    with pytest.raises(UserError, match="push of version 1 its log-probs differ"):
        side.engine.generate(side.requests, GREEDY)
    monkeypatch.setattr(side.backend, "push", push)
    side.assert_greedy_agrees()


def test_a_push_that_is_skipped_is_caught_though_the_step_was_tiny(side, monkeypatch):
    side.engine.generate(side.requests, GREEDY)
    monkeypatch.setattr(
        side.backend, "push", lambda model, stamp: side.backend._llm.llm_engine.set_weight_version(stamp)
    )
    side.train(1e-6)
    with pytest.raises(UserError, match="stale weights"):
        side.engine.generate(side.requests, GREEDY)


def test_a_prefix_cache_of_earlier_weights_is_caught(side, monkeypatch):
    side.engine.generate(side.requests, GREEDY)
    monkeypatch.setattr(side.backend._llm, "reset_prefix_cache", lambda: True)
    side.train(0.05)
    with pytest.raises(UserError, match="push of version 1 its log-probs differ"):
        side.engine.generate(side.requests, GREEDY)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.up_proj.weight", "lm_head.weight"])
def test_weights_that_a_push_leaves_out_are_caught(side, monkeypatch, name):
    import sdzero.rollout.vllm_colocated as colocated

    side.engine.generate(side.requests, GREEDY)
    every = colocated.named_weights
    monkeypatch.setattr(
        colocated, "named_weights", lambda model: (pair for pair in every(model) if pair[0] != name)
    )
    side.train(0.05)
    with pytest.raises(UserError, match="differ"):
        side.engine.generate(side.requests, GREEDY)


def test_sleep_does_no_harm_on_a_cpu(side):
    side.assert_greedy_agrees()
    side.engine.rest()
    side.assert_greedy_agrees()


def test_starting_vllm_draws_no_random_number_of_ours(colocated, side):
    side.assert_greedy_agrees()
    colocated.close()
    torch.manual_seed(11)
    state = torch.get_rng_state()
    side.assert_greedy_agrees()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_other_architectures_with_heads_of_their_own(colocated, kind):
    """The shared vLLM starts anew for another architecture."""
    side = Side(colocated, vllm_recipe(), small_model(kind))
    before = colocated._architecture
    side.assert_greedy_agrees()
    assert colocated._architecture == architecture(side.model) != before
    side.train(0.02)
    side.assert_greedy_agrees()


def test_a_missed_push_is_caught_in_bfloat16_where_a_step_is_no_larger_than_rounding(
    colocated, tmp_path, monkeypatch
):
    colocated.close()  # one vLLM at a time; it starts again when it is needed
    recipe = vllm_recipe()
    model = recipe.model.model_copy(update={"dtype": "bfloat16"})
    recipe = recipe.model_copy(update={"model": model})
    shared = shared_vllm(recipe, load_tokenizer("tiny"), tmp_path, lambda line: None)
    try:
        side = Side(shared, recipe, load_model("tiny", recipe.model))
        for _ in range(3):
            side.train(1e-4)
            side.engine.generate(side.requests[:8], GREEDY)
        monkeypatch.setattr(
            side.backend, "push", lambda model, stamp: side.backend._llm.llm_engine.set_weight_version(stamp)
        )
        side.train(1e-4)
        assert shared.difference_now(side.model) < 0.5
        with pytest.raises(UserError, match="stale weights"):
            side.engine.generate(side.requests[:8], GREEDY)
    finally:
        shared.close()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_sleep_gives_a_gpus_memory_back_and_the_weights_come_again(tmp_path):
    recipe = vllm_recipe(sleep=True)
    shared = shared_vllm(recipe, load_tokenizer("tiny"), tmp_path, lambda line: None)
    try:
        side = Side(shared, recipe, load_model("tiny", recipe.model))
        side.assert_greedy_agrees()
        free = torch.cuda.mem_get_info()[0]
        side.engine.rest()
        assert torch.cuda.mem_get_info()[0] > free
        side.train()
        side.assert_greedy_agrees()
    finally:
        shared.close()


# ---- a server of our own ----


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SharedVllm, Path]]:
    """One server for all tests below; the last of them kills it."""
    folder = tmp_path_factory.mktemp("served")
    shared = shared_vllm(vllm_recipe(mode="server"), load_tokenizer("tiny"), folder, lambda line: None)
    yield shared, folder
    shared.close()


def test_a_server_samples_the_same_and_takes_new_weights(served):
    recipe = vllm_recipe(mode="server")
    side = Side(served[0], recipe, load_model("tiny", recipe.model))
    side.assert_greedy_agrees()
    assert side.engine.generate(side.requests, SAMPLED) == side.engine.generate(side.requests, SAMPLED)
    side.train(0.02)
    side.assert_greedy_agrees()
    assert side.shared.largest_difference < 1e-3
    assert len(list(side.engine.stream(side.requests, SAMPLED))) > 3


def test_a_server_with_stale_weights_is_caught(served, monkeypatch):
    recipe = vllm_recipe(mode="server")
    side = Side(served[0], recipe, load_model("tiny", recipe.model))
    side.assert_greedy_agrees()
    monkeypatch.setattr("sdzero.rollout.vllm_client.write_weights", lambda model, folder, dtype: None)
    side.train()
    with pytest.raises(UserError, match="differ"):
        side.engine.generate(side.requests, GREEDY)


def test_another_run_on_the_same_server_is_noticed(served, tmp_path):
    shared, _ = served
    recipe = vllm_recipe(mode="server")
    side = Side(shared, recipe, load_model("tiny", recipe.model))
    side.assert_greedy_agrees()
    named = VllmSettings(mode="server", url=side.backend.where)
    theirs = recipe.model_copy(update={"rollout": RolloutSettings(engine="vllm", vllm=named)})
    other = shared_vllm(theirs, load_tokenizer("tiny"), tmp_path, lambda line: None)
    stranger = Side(other, theirs, load_model("tiny", recipe.model))
    stranger.assert_greedy_agrees()
    with pytest.raises(UserError, match="other weights than this run sent it"):
        side.engine.generate(side.requests, GREEDY)
    other.close()
    assert side.backend.answers(), "the server is not the other run's to end"


def test_a_killed_server_stops_the_run_with_its_last_lines(served):
    shared, folder = served
    recipe = vllm_recipe(mode="server")
    side = Side(shared, recipe, load_model("tiny", recipe.model))
    stream = side.engine.stream(side.requests, SAMPLED)
    next(stream)
    children = _descendants(side.backend._process._process.pid)
    assert len(children) > 1
    os.kill(children[0], signal.SIGKILL)
    with pytest.raises(UserError, match="server ended by itself") as found:
        list(stream)
    assert str(folder / "vllm-server.log") in str(found.value)
    assert "GET /health" in found.value.what or "INFO" in found.value.what or "POST" in found.value.what
    assert not any(_lives(child) for child in children), "its children are ended too"


def _descendants(pid: int) -> list[int]:
    found = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [one for child in found for one in _descendants(child)]


def _lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


# ---- a whole run ----


def test_a_run_with_vllm_is_killed_resumed_and_finished(tmp_path):
    rollout = {"engine": "vllm", "batch_size": 16, "vllm": OWN}
    recipe = micro_recipe(tmp_path, {"rollout": rollout})
    run = tmp_path / "run"
    command = [sys.executable, "-m", "sdzero.cli", "run", str(recipe), "-o", str(run)]
    first = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seen, deadline = run / "distill/rollouts/step-000003.jsonl", time.monotonic() + 200
    while not seen.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    output = first.communicate()[0].decode()
    assert seen.exists(), output
    assert output.count("starting vLLM") == 1, "one vLLM serves all stages"
    done = sdzero("run", recipe, "-o", run, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = sorted((run / "distill/rollouts").glob("step-*.jsonl"))
    assert [{row["weight_version"] for row in read_jsonl(file)} for file in steps] == [
        {step} for step in range(len(steps))
    ]
    assert (run / "results.json").exists()
    assert not (run / "rollout/weights").exists()
