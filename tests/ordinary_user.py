"""Run a script as a user without rights, for tests that may themselves be run by root."""

import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

NOBODY = 65_534
SOURCES = Path(__file__).resolve().parent.parent / "src"


def _environment() -> dict[str, str]:
    import pydantic

    packages = str(Path(pydantic.__file__).parent.parent)
    path = os.pathsep.join([str(SOURCES), packages])
    return {"PATH": os.environ["PATH"], "PYTHONPATH": path, "HOME": "/", "PYTHONDONTWRITEBYTECODE": "1"}


def _run(python: str, script: str) -> subprocess.CompletedProcess[str]:
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    return subprocess.run(
        [python, "-c", script], env=_environment(), cwd="/", capture_output=True, text=True, **user
    )


@lru_cache
def _python() -> str | None:
    """An interpreter of this version that everybody may run, and that finds sdzero."""
    version = ".".join(map(str, sys.version_info[:2]))
    script = (
        "import sys, sdzero.verify.backends; print('.'.join(map(str, sys.version_info[:2])), sys.executable)"
    )
    for python in (sys.executable, f"/usr/bin/python{version}", f"/usr/local/bin/python{version}"):
        try:
            done = _run(python, script)
        except OSError:  # it is not there, or not for everybody
            continue
        if done.stdout.split() == [version, python]:
            return python
    return None


def run_as_ordinary_user(script: str) -> str:
    """What the script prints. Skips where no ordinary user can run it, or may make namespaces."""
    python = _python()
    if python is None:
        pytest.skip(
            "an ordinary user can run no Python of this version here that finds the sources of sdzero"
        )
    trial = (
        "from sdzero.recipe_sandbox import SandboxSettings\nfrom sdzero.verify.backends import opened\n"
        "with opened(SandboxSettings()): pass"
    )
    tried = _run(python, trial)
    if tried.returncode != 0:
        pytest.skip(f"ordinary users may not isolate programs here: {tried.stderr.strip()[-300:]}")
    done = _run(python, script)
    assert done.returncode == 0, done.stderr
    return done.stdout
