"""`sdzero run --num-processes`, as a user starts it: the same results, and a failure that is told once."""

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdzero.errors import UserError
from sdzero.process_group import check_launcher
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import RunDir
from support import command, environment, micro_recipe, read_jsonl, sdzero, without_seconds

ONE_THREAD = environment() | {"OMP_NUM_THREADS": "1"}


def test_a_failure_is_told_and_ends_all(tmp_path: Path) -> None:
    recipe = micro_recipe(tmp_path)
    with RunDir.open(tmp_path / "run", load_recipe(recipe, [])):
        started = time.monotonic()
        done = sdzero("run", recipe, "-o", tmp_path / "run", "--num-processes", "2", env=ONE_THREAD)
    assert done.returncode == 1
    assert done.stderr.count("error:") == 1
    assert "another process" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 100


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"},
            "DeepSpeed|ZeRO stage 1",
        ),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "fsdp_version: 1"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            "fsdp_cpu_ram_efficient_loading: true",
        ),
    ],
)
def test_what_the_launcher_asks_for_is_checked(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    check_launcher()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        check_launcher()


@pytest.mark.slow
def test_a_whole_run_of_two_processes_is_that_of_one(micro_run: Path, tmp_path: Path) -> None:
    """Killed once, as a whole, in phase 2, and gone on with."""
    folder = tmp_path / "run"
    arguments: list[str | Path] = ["run", micro_recipe(tmp_path), "-o", folder, "--num-processes", "2"]
    first = subprocess.Popen(command(*arguments), env=ONE_THREAD, start_new_session=True)
    marker = folder / "distill/checkpoints/checkpoint-4/complete.json"
    deadline = time.monotonic() + 300
    while not marker.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    last = sdzero(*arguments, env=ONE_THREAD, timeout=300)
    assert last.returncode == 0, last.stderr
    ledgers = [
        {(row["stage"], row["key"]): without_seconds(row) for row in read_jsonl(own / "ledger.jsonl")}
        for own in (folder, micro_run)
    ]
    assert ledgers[0] == ledgers[1]
    batches = sorted(file.relative_to(micro_run) for file in micro_run.rglob("batch-*.jsonl"))
    assert batches
    for batch in batches:
        asked = [[row["question"] for row in read_jsonl(own / batch)] for own in (folder, micro_run)]
        assert asked[0] == asked[1]
    found, expected = (json.loads((own / "results.json").read_text()) for own in (folder, micro_run))
    assert found["budget"]["responses"] == expected["budget"]["responses"]
    assert found["recipe_sha256"] == expected["recipe_sha256"]


def torchrun(rank: int, address: str, port: int) -> list[str]:
    """The command line of one machine of two, of one process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={rank}"]
    return [*launcher, "--nproc-per-node=1", f"--master-addr={address}", f"--master-port={port}"]


def assert_collected_and_trained_as_alone(folder: Path, alone: Path) -> None:
    """The same responses, and the same weights after SRT, to rounding."""
    batches = sorted(file.relative_to(folder) for file in (folder / "collect").rglob("batch-*.jsonl"))
    assert batches
    for batch in batches:
        assert (folder / batch).read_bytes() == (alone / batch).read_bytes()
    name = "srt/round-1/model/model.safetensors"
    found, expected = load_file(folder / name), load_file(alone / name)
    for key, weight in expected.items():
        torch.testing.assert_close(found[key], weight, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_machines_on_the_loopback_make_one_run(micro_run: Path, tmp_path: Path) -> None:
    """A torchrun each, as Slurm and Kubernetes start it, with a process each; collection and SRT."""
    folder, recipe = tmp_path / "run", micro_recipe(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for stage in ("collect", "srt"):
        own = ["-m", "sdzero", stage, str(recipe), "-o", str(folder)]
        commands = [[*torchrun(rank, "127.0.0.1", port), *own] for rank in range(2)]
        nodes = [subprocess.Popen(one, env=ONE_THREAD, start_new_session=True) for one in commands]
        assert [node.wait(timeout=300) for node in nodes] == [0, 0]
        port += 1
    assert_collected_and_trained_as_alone(folder, micro_run)


TWO_NODES = """
set -e
ip link set lo up
unshare -n sleep 600 & other=$!
one=
trap 'kill $other $one 2> /dev/null || true' EXIT
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
in_other="nsenter --net=/proc/$other/ns/net"
ip link add left type veth peer name right
ip link set right netns $other
ip addr add 10.90.0.1/24 dev left
ip link set left up
$in_other ip link set lo up
$in_other ip addr add 10.90.0.2/24 dev right
$in_other ip link set right up
for stage in collect srt; do
    GLOO_SOCKET_IFNAME=left {first} -m sdzero $stage "$1" -o "$2" & one=$!
    GLOO_SOCKET_IFNAME=right $in_other {second} -m sdzero $stage "$1" -o "$2"
    wait $one
done
$in_other cat /proc/net/dev
"""
"""Two network namespaces, joined by a cable, each with its own addresses and its own loopback."""


@pytest.mark.slow
def test_two_machines_with_a_cable_between_them_make_one_run(micro_run: Path, tmp_path: Path) -> None:
    """The same with a network each: what goes from one to the other goes through the cable."""
    unshare = shutil.which("unshare")
    probe = "ip link add left type veth peer name right && ip link set left up"
    if (
        unshare is None
        or subprocess.run([unshare, "-Urn", "sh", "-c", probe], capture_output=True).returncode
    ):
        pytest.skip("no network namespaces, no veth pairs or no `ip` here")
    folder, recipe = tmp_path / "run", micro_recipe(tmp_path)
    first, second = (shlex.join(torchrun(rank, "10.90.0.1", 29500)) for rank in range(2))
    script = TWO_NODES.format(first=first, second=second)
    done = subprocess.run(
        [unshare, "-Urn", "sh", "-c", script, "sh", recipe, folder],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert_collected_and_trained_as_alone(folder, micro_run)
    (cable,) = (line.split() for line in done.stdout.splitlines() if line.strip().startswith("right:"))
    received, sent = int(cable[1]), int(cable[9])
    weights = (folder / "srt/round-1/model/model.safetensors").stat().st_size
    assert min(received, sent) > weights, "gradients went through the cable, step by step"
