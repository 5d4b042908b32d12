"""A whole run, from the recipe to the report, in a network namespace that has nothing but a loopback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from without_network import APART, can_be_taken_away

needs_namespace = pytest.mark.skipif(
    not can_be_taken_away(),
    reason="bubblewrap cannot make a network namespace here (apt-get install bubblewrap)",
)


@needs_namespace
def test_a_whole_run_needs_no_network(micro_run: Path) -> None:
    lines = (micro_run.parent / "interfaces").read_text().splitlines()[2:]
    assert [line.partition(":")[0].strip() for line in lines] == ["lo"]
    results = json.loads((micro_run / "results.json").read_text())
    assert set(results["evaluations"]) == {"base", "rft", "srt", "sdzero"}
    assert (micro_run / "distill/model/model.safetensors").is_file()


@needs_namespace
def test_in_such_a_namespace_nothing_else_is_reached() -> None:
    """What the test above stands on: a connection to elsewhere fails there, whoever tries."""
    code = (
        "import socket\n"
        "try:\n    socket.create_connection(('192.0.2.7', 9), timeout=5)\n"
        "except OSError as error:\n    print(error.strerror)"
    )
    done = subprocess.run([*APART, sys.executable, "-c", code], capture_output=True, text=True, timeout=30)
    assert done.stdout.strip() == "Network is unreachable"
