"""The sandbox that a recipe asks for, tried out before anything is graded in it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from sdzero.errors import UserError
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.sandbox import INSTALL_BUBBLEWRAP, Job, Limits, Sandbox, SandboxError

CONTAINER_HELP = "see that `{} run` works with the image, which needs /bin/sh, /usr/bin/env and python3"
HELP = {
    "bubblewrap": (
        f"{INSTALL_BUBBLEWRAP} and allow it namespaces"
        " (Ubuntu: kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile; in a container:"
        " the capability SYS_ADMIN, or a seccomp profile that allows unshare and mount); or name docker or"
        " podman"
    ),
    "docker": CONTAINER_HELP.format("docker"),
    "podman": CONTAINER_HELP.format("podman"),
    "unsafe": "see that the interpreter of verifier.sandbox.python works",
}


FIRST_PROGRAM = b"""import sys
if sys.version_info < (3, 11):
    sys.exit(f"programs are run by Python {sys.version.split()[0]}, and 3.11 or newer is needed")
print(6 * 7)
"""


def limits_of(settings: SandboxSettings) -> Limits:
    """The limits of one test, less what a question sets itself."""
    return Limits(**{limit.name: getattr(settings, limit.name) for limit in fields(Limits)})


def _make(settings: SandboxSettings) -> Sandbox:
    if settings.backend == "bubblewrap":
        from sdzero.verify.bubblewrap import BubblewrapSandbox

        return BubblewrapSandbox(settings)
    if settings.backend == "unsafe":
        from sdzero.verify.unsafe import UnsafeSandbox

        return UnsafeSandbox(settings)
    from sdzero.verify.containers import ContainerSandbox

    return ContainerSandbox(settings)


def make_sandbox(settings: SandboxSettings) -> Sandbox:
    """The sandbox, after a first program ran in it. Raises UserError, saying what to do, if none does."""
    sandbox = _make(settings)
    try:
        program = {"first.py": FIRST_PROGRAM}
        job = Job((*sandbox.python(), sandbox.place("first.py")), limits_of(settings), program)
        done = sandbox.run(job)
        if done.exit_code != 0 or done.stdout != b"42\n":
            said = done.stderr.decode(errors="replace").strip()
            raise SandboxError(f"a first program ended with {done.ending}, {done.exit_code}: {said[-300:]}")
    except SandboxError as fault:
        sandbox.close()
        reason = re.sub(r"\s+", " ", str(fault))
        raise UserError(
            f"programs cannot be run in isolation: {reason}",
            f"verifier.sandbox.backend={settings.backend}",
            HELP[settings.backend],
        ) from fault
    except BaseException:
        sandbox.close()
        raise
    return sandbox


@contextmanager
def opened(settings: SandboxSettings) -> Iterator[Sandbox]:
    """The sandbox of the settings, closed at the end."""
    sandbox = make_sandbox(settings)
    try:
        yield sandbox
    finally:
        sandbox.close()
