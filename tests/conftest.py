"""What every test stands on: nothing goes out, few threads, and quick property tests."""

import os

# Before any import that reads them; processes started by tests inherit them.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "2")

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import settings

settings.register_profile("sdzero", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("sdzero")

LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True, scope="session")
def nothing_goes_out() -> Iterator[None]:
    """A connection to another machine fails the test that tries it."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(LOOPBACK):
            raise AssertionError(f"a test tried to connect to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of pytest's processes to ask for it makes, and the others wait for."""
    own = factory.getbasetemp()
    root = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = root / name
    with FileLock(root / f"{name}.lock"):
        if not (folder / "made").exists():
            folder.mkdir()
            make(folder)
            (folder / "made").touch()
    return folder


@pytest.fixture(scope="session")
def micro_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the micro recipe, made by the command; tests only read it.

    It is made without a network where bubblewrap can take it away (`test_without_network.py`).
    """
    from support import SECRETS, environment, micro_recipe, sdzero_afresh
    from without_network import without_network

    def make(folder: Path) -> None:
        arguments = ("run", micro_recipe(folder), "-o", folder / "run")
        prefix = without_network(folder / "interfaces")
        done = sdzero_afresh(*arguments, prefix=prefix, env=environment() | SECRETS)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "micro", make) / "run"


@pytest.fixture
def micro_settings(tmp_path: Path) -> Any:
    """The micro recipe's settings."""
    from sdzero.recipe_io import load_recipe
    from support import micro_recipe

    return load_recipe(micro_recipe(tmp_path / "micro-recipe"))


@pytest.fixture(scope="session")
def micro_compare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison of the micro recipe, every method; tests only read it."""
    from support import micro_recipe, sdzero

    def make(folder: Path) -> None:
        methods = "base,sft,rft,grpo,grpo@tokens,sdft,negative,srt,sdzero"
        arguments = ["--methods", methods, "--seeds", "2", "-o", folder / "compare"]
        # Nine methods on three seeds: minutes where other work shares the machine.
        done = sdzero("compare", micro_recipe(folder), *arguments, timeout=900)
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "compared", make) / "compare"
