"""Where the Python interpreter is that runs programs, and what of it a sandbox must show."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from sdzero.errors import UserError

_ASK = """
import json, site, sys, sysconfig
print(json.dumps({
    "version": list(sys.version_info[:3]),
    "executable": sys.executable,
    "prefix": sys.base_prefix,
    "sites": site.getsitepackages([sys.base_prefix]),
}))
"""
ASK_SECONDS = 30.0


@dataclass(frozen=True)
class Interpreter:
    """`executable` is the interpreter's own file, not a virtual environment's link to it.

    `sites` are the folders of installed packages, which programs do not see.
    """

    executable: str
    prefix: str
    sites: tuple[str, ...]
    version: str

    @property
    def folders(self) -> list[str]:
        """The folders of the interpreter outside /usr, which a sandbox shows anyway."""
        if Path(self.prefix).is_relative_to("/usr"):
            return []
        return [str(path) for name in ("bin", "lib", "lib64") if (path := Path(self.prefix) / name).is_dir()]


def find_interpreter(python: str | None) -> Interpreter:
    """The interpreter of a path, or the one that this process runs on.

    Raises UserError if the path leads to no interpreter.
    """
    named = python or sys.executable
    try:
        done = subprocess.run([named, "-I", "-c", _ASK], capture_output=True, text=True, timeout=ASK_SECONDS)
        told = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as fault:
        raise UserError(
            f"{named} cannot be run as a Python interpreter: {fault}",
            "verifier.sandbox.python",
            "give the path of a python3",
        ) from fault
    prefix, (major, minor, _) = told["prefix"], told["version"]
    own = Path(prefix) / "bin" / f"python{major}.{minor}"
    executable = own.resolve() if own.exists() else Path(told["executable"]).resolve()
    sites = tuple(str(Path(site).resolve()) for site in told["sites"] if Path(site).is_dir())
    return Interpreter(str(executable), prefix, sites, ".".join(map(str, told["version"])))
