"""Nothing leaves the machine unless the recipe says so: the switches, the guard, and what it refuses."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.network_guard import GUARDED, LeavesMachineError, guarded, is_here
from sdzero.offline import OFFLINE, SENDS_ELSEWHERE, hub_id, kept_in, load_recipe
from sdzero.questions.question import Question
from sdzero.recipe import Recipe
from sdzero.verify.pool import VerifierPool
from sdzero.verify.verdict import Outcome
from support import environment, micro_recipe

ELSEWHERE = "192.0.2.7"
"""An address of TEST-NET-1 (RFC 5737), which belongs to nobody."""


@pytest.fixture
def offline(tmp_path: Path) -> Recipe:
    from sdzero.recipe_io import load_recipe as read

    return read(micro_recipe(tmp_path))


def changed(recipe: Recipe, **values: Any) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | values)


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as one:
        yield one


# ---- the guard: events are raised as Python's sockets raise them, so nothing is sent ----


@pytest.mark.parametrize(
    ("event", "arguments", "named"),
    [
        ("socket.connect", ("SOCKET", (ELSEWHERE, 443)), f"{ELSEWHERE}, port 443"),
        ("socket.connect", ("SOCKET", ("2001:db8::1", 443, 0, 0)), "2001:db8::1, port 443"),
        ("socket.connect", ("SOCKET", (b"192.0.2.7", 80)), f"{ELSEWHERE}, port 80"),
        ("socket.connect", ("SOCKET", ("::ffff:192.0.2.7", 80)), "::ffff:192.0.2.7, port 80"),
        ("socket.sendto", ("SOCKET", (ELSEWHERE, 53)), f"{ELSEWHERE}, port 53"),
        ("socket.sendmsg", ("SOCKET", (ELSEWHERE, 53)), f"{ELSEWHERE}, port 53"),
        ("socket.getaddrinfo", ("hub.example", 443, 0, 0, 0), "hub.example"),
        ("socket.gethostbyname", ("hub.example",), "hub.example"),
        ("socket.gethostbyaddr", (ELSEWHERE,), ELSEWHERE),
        ("socket.getnameinfo", ((ELSEWHERE, 80),), ELSEWHERE),
    ],
)
def test_ways_out_are_refused_with_their_address(
    event: str, arguments: tuple[Any, ...], named: str, udp: socket.socket
) -> None:
    arguments = tuple(udp if one == "SOCKET" else one for one in arguments)
    with guarded(()), pytest.raises(LeavesMachineError) as refused:
        sys.audit(event, *arguments)
    assert refused.value.where == named
    assert "online=true" in str(refused.value)
    sys.audit(event, *arguments)  # and outside of the block nothing is


@pytest.mark.parametrize(
    ("event", "arguments"),
    [
        ("socket.connect", ("SOCKET", ("127.0.0.1", 80))),
        ("socket.connect", ("SOCKET", ("127.9.9.9", 80))),
        ("socket.connect", ("SOCKET", ("::1", 80, 0, 0))),
        ("socket.connect", ("SOCKET", ("::ffff:127.0.0.1", 80))),
        ("socket.connect", ("SOCKET", ("localhost", 80))),
        ("socket.connect", ("SOCKET", ("", 80))),
        ("socket.sendmsg", ("SOCKET", None)),
        ("socket.getaddrinfo", (None, 80, 0, 0, 0)),
        ("socket.getaddrinfo", ("localhost", 80, 0, 0, 0)),
        ("socket.getaddrinfo", (socket.gethostname(), 80, 0, 0, 0)),
    ],
)
def test_this_machine_is_reached(event: str, arguments: tuple[Any, ...], udp: socket.socket) -> None:
    with guarded(()):
        sys.audit(event, *(udp if one == "SOCKET" else one for one in arguments))


@pytest.mark.parametrize(
    "host", ["127.1", "0x7f000001", "127.0.0.1.example", "localhost.example", "10.0.0.1"]
)
def test_what_only_looks_like_this_machine_is_not(host: str) -> None:
    assert not is_here(host)


def test_a_server_on_the_loopback_and_a_local_socket_answer(tmp_path: Path) -> None:
    with (
        guarded(()),
        closing(socket.create_server(("127.0.0.1", 0))) as tcp,
        closing(socket.socket(socket.AF_UNIX)) as local,
    ):
        local.bind(str(tmp_path / "socket"))
        local.listen()
        for server, address in ((tcp, tcp.getsockname()), (local, str(tmp_path / "socket"))):
            with closing(socket.socket(server.family)) as client:
                client.connect(address)
                accepted, _ = server.accept()
                with accepted:
                    client.sendall(b"hello")
                    assert accepted.recv(5) == b"hello"


def test_named_hosts_may_be_reached_and_no_others(udp: socket.socket) -> None:
    with guarded({ELSEWHERE}):
        sys.audit("socket.connect", udp, (ELSEWHERE, 80))
        with pytest.raises(LeavesMachineError):
            sys.audit("socket.connect", udp, ("192.0.2.8", 80))


def test_a_vllm_server_of_the_users_and_the_first_process_are_named_hosts(
    offline: Recipe, udp: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm = {"mode": "server", "url": f"http://{ELSEWHERE}:8000", "allow_remote": True}
    recipe = changed(offline, rollout={"engine": "vllm", "vllm": vllm})
    monkeypatch.setenv("MASTER_ADDR", "192.0.2.9")
    with kept_in(recipe):
        sys.audit("socket.connect", udp, (ELSEWHERE, 8000))
        with pytest.raises(LeavesMachineError):  # there is one process
            sys.audit("socket.connect", udp, ("192.0.2.9", 29500))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with kept_in(recipe):
        sys.audit("socket.connect", udp, ("192.0.2.9", 29500))


def test_an_online_recipe_is_not_guarded(offline: Recipe, udp: socket.socket) -> None:
    before = dict(os.environ)
    with kept_in(changed(offline, online=True)):
        assert dict(os.environ) == before
        sys.audit("socket.connect", udp, (ELSEWHERE, 443))


def test_threads_are_guarded(udp: socket.socket) -> None:
    found: list[BaseException] = []

    def work() -> None:
        try:
            sys.audit("socket.connect", udp, (ELSEWHERE, 1))
        except LeavesMachineError as refused:
            found.append(refused)

    with guarded(()):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(found) == 1


# ---- the guard against real attempts, also of libraries ----

ATTEMPTS = """
import json, socket, sys, urllib.request
from sdzero.network_guard import LeavesMachineError, guarded
import huggingface_hub
from huggingface_hub import HfApi, constants

def by_library():
    constants.HF_HUB_OFFLINE = False  # as if its switch had been forgotten
    HfApi(endpoint="http://192.0.2.7", token=False).model_info("owner/name", timeout=5)

def by_datagram():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.sendto(b"x", ("192.0.2.7", 9))

def by_socket(call):
    with socket.socket() as one:
        one.settimeout(5)
        getattr(one, call)(("192.0.2.7", 9))

attempts = {
    "connect": lambda: by_socket("connect"),
    "connect_ex": lambda: by_socket("connect_ex"),
    "datagram": by_datagram,
    "look-up": lambda: socket.getaddrinfo("hub.example.invalid", 443),
    "urllib": lambda: urllib.request.urlopen("http://192.0.2.7/", timeout=5),
    "huggingface_hub": by_library,
}
found = {}
with guarded(()):
    for name, attempt in attempts.items():
        try:
            attempt()
            found[name] = "went out"
        except BaseException as fault:
            found[name] = [type(fault).__name__, str(fault)]
print(json.dumps(found))
"""


def test_real_attempts_are_refused_by_their_address() -> None:
    variables = {key: value for key, value in environment().items() if "proxy" not in key.lower()}
    variables |= {"HF_HUB_OFFLINE": "0", "NO_PROXY": "*", "no_proxy": "*"}
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS], capture_output=True, text=True, timeout=120, env=variables
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 6
    for name, outcome in found.items():
        kind, message = outcome
        assert kind == "LeavesMachineError", (name, outcome)
        assert ("hub.example.invalid" if name == "look-up" else ELSEWHERE) in message


VERIFIER = """
import socket

def calls_home(question, response):
    with socket.socket() as one:
        one.settimeout(2)
        one.connect(("192.0.2.7", 9))
    return True
"""


def test_workers_that_grade_are_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "calling.py").write_text(VERIFIER)
    monkeypatch.chdir(tmp_path)
    with guarded(()), VerifierPool("calling:calls_home", workers=1, timeout_seconds=20) as pool:
        (verdict,) = pool.grade([(Question("q", "1 + 1", "2"), "2")])
    assert verdict.outcome is Outcome.ERROR
    assert f"LeavesMachineError: a connection to {ELSEWHERE}" in verdict.detail


# ---- the switches ----


def test_switches_are_set_for_the_block_and_put_back(
    offline: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "owner/space")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    before = dict(os.environ)
    with kept_in(offline):
        assert OFFLINE.items() <= os.environ.items()
        assert not set(SENDS_ELSEWHERE) & set(os.environ)
        assert os.environ[GUARDED] == ""
        assert huggingface_hub.constants.is_offline_mode()
        assert datasets.config.HF_HUB_OFFLINE
    assert dict(os.environ) == before
    assert not huggingface_hub.constants.is_offline_mode()


def test_the_command_sets_the_switches_before_any_library_of_the_hub_is_imported(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path)
    code = (
        "import sys, os, json, sdzero.cli\n"
        f"sdzero.cli.load_recipe({str(recipe)!r})\n"
        "hub = [name for name in sys.modules if name.partition('.')[0] in"
        " ('huggingface_hub', 'transformers', 'datasets', 'trl', 'vllm', 'torch')]\n"
        "print(json.dumps([hub, dict(os.environ)]))"
    )
    bare = {key: value for key, value in environment().items() if key not in OFFLINE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=bare)
    assert done.returncode == 0, done.stderr
    imported, variables = json.loads(done.stdout)
    assert imported == []
    assert OFFLINE.items() <= variables.items()
    assert variables["VLLM_NO_USAGE_STATS"] == variables["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_an_online_recipe_leaves_the_switches_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    before = dict(os.environ)
    assert load_recipe(micro_recipe(tmp_path), ["online=true"]).online
    assert dict(os.environ) == before


# ---- hub ids ----


@pytest.mark.parametrize("path", ["tiny", "tiny:walks", "/models/a", "./a/b", "~/a", "a", "a/", "a/b/c"])
def test_what_is_no_hub_id(path: str) -> None:
    assert hub_id(path) is None


def test_a_folder_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("owner/name") == "owner/name"
    (tmp_path / "owner/name").mkdir(parents=True)
    assert hub_id("owner/name") is None


@pytest.mark.parametrize(
    ("section", "key"), [("model", "path"), ("srt", "checkpoint"), ("distill", "teacher")]
)
def test_a_hub_id_that_is_not_in_the_cache_is_refused(
    offline: Recipe, section: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    cached: dict[str, str] = {}
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda model, file: cached.get(f"{model}/{file}")
    )
    values = offline.model_dump()
    values["distill"]["rehearsal_weight"] = 0.0
    values[section][key] = "owner/some-model"
    recipe = Recipe.model_validate(values)
    with pytest.raises(UserError) as refused, kept_in(recipe):
        pytest.fail("the block was entered")
    assert refused.value.where == f"{section}.{key}"
    assert "owner/some-model is not on this machine" in refused.value.what
    for way in ("online=true", "hf download owner/some-model", "docs/air-gap.md"):
        assert way in str(refused.value.todo)
    cached["owner/some-model/config.json"] = str(tmp_path / "config.json")
    with kept_in(recipe):
        pass


def test_a_run_with_a_hub_id_ends_at_once_and_says_what_to_do(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path, {"model": {"path": "owner/some-model"}})
    result = CliRunner().invoke(app, ["run", str(recipe), "-o", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "the model owner/some-model is not on this machine, and the recipe is offline" in result.stderr
    assert "set online=true" in result.stderr


def test_a_run_may_go_on_offline_that_was_begun_online(offline: Recipe, tmp_path: Path) -> None:
    from sdzero.run_dir import RunDir

    RunDir.open(tmp_path / "run", changed(offline, online=True)).close()
    RunDir.open(tmp_path / "run", offline).close()
