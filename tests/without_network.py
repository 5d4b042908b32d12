"""Commands that run in a network namespace of their own, with no interface but a loopback."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

NEEDED = os.environ.get("SDZERO_NEEDS_SANDBOX") == "1"

APART = ("bwrap", "--dev-bind", "/", "/", "--unshare-net", "--die-with-parent", "--")


@functools.cache
def can_be_taken_away() -> bool:
    """Whether bubblewrap may make such a namespace here. Where it must, as in CI, nobody asks."""
    if NEEDED:
        return True
    if shutil.which(APART[0]) is None:
        return False
    return subprocess.run([*APART, "true"], capture_output=True).returncode == 0


def without_network(interfaces: Path) -> tuple[str, ...]:
    """The words before a command that take the network from it, and write its interfaces into a file first;
    none where that is not possible."""
    if not can_be_taken_away():
        return ()
    return (*APART, "sh", "-c", f'cat /proc/net/dev > "{interfaces}"; exec "$@"', "sh")
