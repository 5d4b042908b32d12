"""The vLLM engine without vLLM: when weights are pushed, what the probe catches, what a server may do."""

import copy
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rollout.fake_vllm import FakeBackend, FakeServer
from sdzero.errors import UserError
from sdzero.recipe_rollout import VllmSettings
from sdzero.rollout.engine import Request, Sampling, StreamingEngine
from sdzero.rollout.named_weights import architecture, named_weights, write_weights
from sdzero.rollout.probe import Probe, ProbeSequence, probe_sequence
from sdzero.rollout.vllm_client import ServedVllm, use_server
from sdzero.rollout.vllm_engine import Sampled, SharedVllm, VllmEngine
from sdzero.rollout.vllm_server import ServerProcess

END = 1
SAMPLING = Sampling(temperature=0.7, max_new_tokens=4)
REQUESTS = [Request((5, 6, 7 + i), i) for i in range(5)]
PROBE = [ProbeSequence((5,), (6, 7, 8, 9))]


def make_model(seed: int = 0, tied: bool = False, layers: int = 1) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 30}
    config = LlamaConfig(
        **sizes, num_hidden_layers=layers, max_position_embeddings=32, tie_word_embeddings=tied
    )
    return LlamaForCausalLM(config)


class Setting:
    """A shared fake, with the backends that it started."""

    def __init__(self, tolerance: float = 1e-4) -> None:
        self.backends: list[FakeBackend] = []
        self.reports: list[str] = []
        self.shared = SharedVllm(self.start, lambda model: Probe(PROBE, tolerance, True), self.reports.append)

    def start(self, model: LlamaForCausalLM) -> FakeBackend:
        self.backends.append(FakeBackend(make_model(99, layers=model.config.num_hidden_layers), END))
        return self.backends[-1]

    def engine(self, model: LlamaForCausalLM) -> VllmEngine:
        return VllmEngine(self.shared, model, [END], 32)


def step(model: LlamaForCausalLM, size: float = 0.1) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def test_vllm_starts_when_responses_are_asked_for_and_only_once():
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    engine.take_weights(model, steps=0)
    engine.rest()
    assert setting.backends == []
    engine.generate(REQUESTS, SAMPLING)
    setting.engine(make_model(1)).generate(REQUESTS, SAMPLING)
    assert len(setting.backends) == 1


def test_weights_are_pushed_at_the_start_of_a_stage_and_after_each_step_and_not_between():
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    for _ in range(2):
        engine.generate(REQUESTS, SAMPLING)
    pushes = setting.backends[0].pushes
    assert len(pushes) == 1
    step(model)
    engine.take_weights(model)
    assert len(pushes) == 1, "they are pushed when they are needed"
    responses = engine.generate(REQUESTS, SAMPLING)
    assert len(pushes) == 2
    assert {response.weight_version for response in responses} == {1}
    other = setting.engine(make_model(7))
    assert {response.weight_version for response in other.generate(REQUESTS, SAMPLING)} == {0}
    engine.generate(REQUESTS, SAMPLING)
    assert len(pushes) == 4, "whoever samples next sends its own weights"
    assert len(set(pushes)) == 4


def test_a_resumed_trainer_says_how_many_steps_lie_behind():
    engine = Setting().engine(make_model())
    engine.take_weights(make_model(3), steps=7)
    assert engine.generate(REQUESTS, SAMPLING)[0].weight_version == 7


def test_responses_come_as_they_end_and_generate_puts_them_in_order():
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    assert isinstance(engine, StreamingEngine)
    groups = list(engine.stream(REQUESTS, SAMPLING))
    assert [index for group in groups for index, _ in group] == [4, 3, 2, 1, 0]
    responses = engine.generate(REQUESTS, SAMPLING)
    assert [response.token_ids for response in responses] == [(7 + i, END) for i in range(5)]


def test_a_push_that_did_not_arrive_is_caught_and_named():
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    engine.generate(REQUESTS, SAMPLING)
    setting.backends[0].drops_pushes = True
    step(model)
    engine.take_weights(model)
    with pytest.raises(UserError, match=r"push of version 1 .* differ"):
        engine.generate(REQUESTS, SAMPLING)
    setting.backends[0].drops_pushes = False
    engine.generate(REQUESTS, SAMPLING)
    assert len(setting.backends[0].pushes) == 3, "after a failed probe the weights are sent again"


def test_stale_weights_are_caught_where_the_step_is_smaller_than_the_tolerance():
    setting, model = Setting(tolerance=0.5), make_model()
    engine = setting.engine(model)
    engine.generate(REQUESTS, SAMPLING)
    step(model, 1e-4)
    engine.take_weights(model)
    setting.backends[0].drops_pushes = True
    with pytest.raises(UserError, match="stale weights"):
        engine.generate(REQUESTS, SAMPLING)


def test_weights_that_come_back_after_a_failed_push_are_no_stale_ones():
    setting, model, other = Setting(), make_model(), make_model(3)
    first, second = setting.engine(model), setting.engine(other)
    first.generate(REQUESTS, SAMPLING)
    setting.backends[0].drops_pushes = True
    with pytest.raises(UserError, match="differ"):
        second.generate(REQUESTS, SAMPLING)
    assert first.generate(REQUESTS, SAMPLING), "vLLM holds these weights still"


def test_weights_that_stay_the_same_are_no_stale_ones():
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    for _ in range(2):
        engine.generate(REQUESTS, SAMPLING)
        engine.take_weights(model)  # a step with a learning rate of 0
    assert engine.generate(REQUESTS, SAMPLING)[0].weight_version == 2


def test_a_difference_that_is_not_a_number_is_drift():
    model = make_model()
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(UserError, match="up to nan"):
        Probe(PROBE, 100.0, True).check(model, FakeBackend(broken, END), 0)


def test_the_probe_leaves_the_model_as_it_was():
    model = make_model().train()
    state = torch.get_rng_state()
    Probe(PROBE, 1.0, True).check(model, FakeBackend(model, END), 0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_probe_sequence_fills_the_length_with_its_continuation():
    assert probe_sequence([1, 2], [3, 4, 5], 9).token_ids == (1, 2, 3, 4, 5, 3, 4, 5, 3)
    assert probe_sequence([1, 2], [3, 4, 5], 1).token_ids == (1, 2, 3)


@pytest.mark.parametrize(
    ("sampled", "message"),
    [
        (Sampled((7, END), ("default",)), "other weights"),
        (Sampled((7, END), ()), "stamped nothing"),
        (Sampled((7, END), ("STAMP", "default")), "other weights"),
        (Sampled((7, 8), ("STAMP",)), "neither ends nor reaches"),
        (Sampled((END, 8, 9, END), ("STAMP",)), "after its end"),
        (Sampled((), ("STAMP",)), "neither ends nor reaches"),
    ],
)
def test_a_response_that_cannot_be_is_refused(sampled, message):
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    engine.generate(REQUESTS, SAMPLING)
    stamps = tuple(setting.shared.stamp if stamp == "STAMP" else stamp for stamp in sampled.stamps)
    setting.backends[0].answers = [Sampled(sampled.token_ids, stamps)] * 5
    with pytest.raises(UserError, match=message):
        engine.generate(REQUESTS, SAMPLING)


def test_the_end_token_at_the_limit_is_an_end():
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    engine.generate(REQUESTS, SAMPLING)
    stamp = (setting.shared.stamp,)
    setting.backends[0].answers = [Sampled((7, 8, 9, END), stamp), Sampled((7, 8, 9, 10), stamp)]
    assert [r.stop_reason for r in engine.generate(REQUESTS[:2], SAMPLING)] == ["end", "length"]


def test_it_sleeps_when_told_to_and_what_it_wakes_with_is_pushed():
    setting, model = Setting(), make_model()
    engine = setting.engine(model)
    engine.generate(REQUESTS, SAMPLING)
    backend = setting.backends[0]
    engine.rest()
    engine.rest()
    assert (backend.naps, backend.wakes, len(backend.pushes)) == (1, 0, 1)
    engine.generate(REQUESTS, SAMPLING)
    assert (backend.naps, backend.wakes, len(backend.pushes)) == (1, 1, 2)


def test_a_model_of_another_architecture_starts_another_vllm():
    setting = Setting()
    setting.engine(make_model(layers=1)).generate(REQUESTS, SAMPLING)
    setting.engine(make_model(layers=2)).generate(REQUESTS, SAMPLING)
    assert [backend.is_closed for backend in setting.backends] == [True, False]
    setting.shared.close()
    assert all(backend.is_closed for backend in setting.backends)


def test_the_folder_and_dtype_of_a_model_are_no_part_of_its_architecture():
    model, other = make_model(), make_model()
    other.config._name_or_path = "elsewhere"
    assert architecture(model) == architecture(other.to(torch.bfloat16))
    assert architecture(model) != architecture(make_model(tied=True))


def test_the_model_of_a_finished_stage_is_let_go_of():
    setting, gone = Setting(), []
    engine = setting.engine(make_model())
    engine.generate(REQUESTS, SAMPLING)
    import weakref

    weakref.finalize(engine.model, gone.append, True)
    del engine
    gc.collect()
    assert gone == [True]


def test_impossible_requests_are_refused_before_vllm_is_started():
    setting = Setting()
    engine = setting.engine(make_model())
    with pytest.raises(UserError, match="do not fit"):
        engine.generate([Request(tuple(range(2, 30)), 0)], Sampling(0.7, 8))
    with pytest.raises(UserError, match="no tokens"):
        engine.generate([Request((), 0)], SAMPLING)
    assert engine.generate([], SAMPLING) == []
    assert setting.backends == []


def test_a_tied_head_is_sent_too_and_has_memory_of_its_own_in_the_file(tmp_path):
    from safetensors.torch import load_file

    tied, free = make_model(tied=True), make_model()
    assert [name for name, _ in named_weights(tied)].count("lm_head.weight") == 1
    assert [name for name, _ in named_weights(free)].count("lm_head.weight") == 1
    write_weights(tied, tmp_path, torch.bfloat16)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["lm_head.weight"], tied.model.embed_tokens.weight.bfloat16())
    assert set(found) == {name for name, _ in named_weights(tied)}
    assert not list(tmp_path.glob("*.partial"))


# ---- a server ----


@pytest.fixture
def server():
    fake = FakeServer(END)
    yield fake
    fake.close()


def serve(fake: FakeServer, folder: Path, **settings: Any) -> ServedVllm:
    own = VllmSettings(mode="server", url=fake.url, **settings)
    return use_server(fake.url, make_model(tied=True), own, folder, "float32", 3)


def test_a_server_is_sent_the_weights_and_named_them_when_its_cache_is_empty(server, tmp_path):
    served, model = serve(server, tmp_path), make_model(tied=True)
    served.push(model, "mine-1")
    assert server.loaded == [{name for name, _ in named_weights(model)}]
    assert server.resets == 2, "it was busy the first time"
    assert server.version == "mine-1"
    (own,) = tmp_path.iterdir()
    assert (own / "model.safetensors").is_file()
    served.close()
    assert not own.exists()


def test_what_else_is_in_the_folder_for_weights_is_left_alone(server, tmp_path):
    theirs = tmp_path / "shared"
    theirs.mkdir()
    for name in ("config.json", "model.safetensors", "notes"):
        (theirs / name).write_text("mine")
    served = serve(server, tmp_path, weights_folder=str(theirs))
    served.push(make_model(tied=True), "mine-1")
    served.close()
    assert {file.name: file.read_text() for file in theirs.iterdir()} == dict.fromkeys(
        ("config.json", "model.safetensors", "notes"), "mine"
    )


def test_a_server_is_sent_token_ids_seeds_and_limits(server, tmp_path):
    served = serve(server, tmp_path)
    found = dict(pair for group in served.stream(REQUESTS, SAMPLING, [END]) for pair in group)
    assert {index: sampled.token_ids for index, sampled in found.items()} == {
        i: (7 + i, END) for i in range(5)
    }
    by_prompt = {tuple(body["token_ids"]): body["sampling_params"] for body in server.bodies}
    assert {ids: own["seed"] for ids, own in by_prompt.items()} == {r.prompt_ids: r.seed for r in REQUESTS}
    asked = by_prompt[REQUESTS[0].prompt_ids]
    assert (asked["temperature"], asked["max_tokens"], asked["stop_token_ids"]) == (0.7, 4, [END])
    assert asked["ignore_eos"] is True


def test_a_server_is_asked_for_log_probs(server, tmp_path):
    (score,) = serve(server, tmp_path).score([(5, 6, 7)])
    assert score.log_probs == (-1.0, -1.0)
    assert (score.next_token, score.next_log_prob) == (7, -0.5)
    assert ["logprobs" in body["sampling_params"] for body in server.bodies] == [True, False]


def test_a_server_that_fails_stops_the_run_with_its_words(tmp_path):
    fake = FakeServer(END, fails_at=1)
    served = serve(fake, tmp_path)
    with pytest.raises(UserError, match=r"status 500.*out of memory"):
        list(served.stream(REQUESTS, SAMPLING, [END]))
    fake.close()


def test_a_server_that_is_gone_is_named(server, tmp_path):
    served = serve(server, tmp_path)
    server.close()
    with pytest.raises(UserError, match="does not answer") as found:
        list(served.stream(REQUESTS, SAMPLING, [END]))
    assert found.value.where == server.url
    assert "finished batches are kept" in (found.value.todo or "")


def test_a_server_without_its_routes_for_development_is_refused(tmp_path):
    fake = FakeServer(END, missing="/weight_info")
    with pytest.raises(UserError) as found:
        serve(fake, tmp_path)
    assert "VLLM_SERVER_DEV_MODE=1" in (found.value.todo or "")
    fake.close()


def test_a_stream_that_is_given_up_hangs_up(tmp_path):
    given_up = threading.Event()
    answered_late = []

    class Slow(FakeServer):
        def answer(self, path, body):
            if body is not None and body.get("token_ids", [0])[-1] > 7:
                answered_late.append(given_up.wait(120))
            return super().answer(path, body)

    fake = Slow(END)
    stream = serve(fake, tmp_path).stream(REQUESTS[:3], SAMPLING, [END])
    assert [index for index, _ in next(stream)] == [0]
    stream.close()  # returns while the server still holds the others back
    assert answered_late == []
    given_up.set()
    fake.close()


# ---- the process of a server ----


def wait_for(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


PARENT_AND_CHILD = (
    "import subprocess, sys, time;"
    " c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
    " print(c.pid, flush=True); time.sleep(60)"
)


def test_a_server_is_ended_with_its_children(tmp_path):
    process = ServerProcess([sys.executable, "-c", PARENT_AND_CHILD], 1, tmp_path / "log")
    wait_for(lambda: process.log.read_text().strip())
    child = int(process.log.read_text())
    assert process.is_alive()
    process.end()
    wait_for(lambda: not lives(child))
    assert not process.is_alive()


def test_a_server_does_not_outlive_a_run_that_is_killed(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from sdzero.rollout.vllm_server import ServerProcess;"
        f" p = ServerProcess([sys.executable, '-c', {PARENT_AND_CHILD!r}], 1,"
        f" Path({str(tmp_path / 'log')!r}));"
        "print('up', flush=True); time.sleep(60)"
    )
    from support import environment

    run = subprocess.Popen([sys.executable, "-c", script], env=environment(), stdout=subprocess.PIPE)
    log = tmp_path / "log"
    wait_for(lambda: log.exists() and log.read_text().strip())
    child = int(log.read_text())
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: not lives(child))
    assert run.stdout is not None
    run.stdout.close()


def test_the_last_lines_of_a_server_that_dies_are_shown(tmp_path):
    process = ServerProcess(
        [sys.executable, "-c", "print('no memory left'); raise SystemExit(3)"], 1, tmp_path / "log"
    )
    with pytest.raises(UserError, match=r"status 3(?s:.*)no memory left"):
        process.wait_until(lambda: False, 60)


def test_a_server_that_does_not_answer_in_time_is_named(tmp_path):
    process = ServerProcess([sys.executable, "-c", PARENT_AND_CHILD], 1, tmp_path / "log")
    with pytest.raises(UserError, match=r"does not answer after 0\.2 s"):
        process.wait_until(lambda: False, 0.2)
    process.end()
