"""What an attack is: a hostile program, and how its effect would show.

It is a Python program for the sandbox, `PRELUDE` before it. Its first argument tells it what lies outside
(`attack_scene.py`). It says `begun`, then for each attempt `denied` or `breach`, then `tried`. What it could
read it prints: a secret in it is a breach, whatever the program says.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdzero.verify.sandbox import Ending, Finished, Limits

PRELUDE = r"""
import ctypes, json, os, sys, time
outside = json.loads(sys.argv[1])

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\n").encode("utf-8", "replace"))

def attempt(what, act, *arguments):
    try:
        act(*arguments)
    except OSError as fault:
        say("denied:", what, repr(fault))
    else:
        say("breach:", what)

def show(path):
    try:
        with open(path, "rb") as file:
            say(path, file.read(1 << 16))
    except OSError as fault:
        say("denied:", repr(fault))

def kernel(name, *arguments):
    done = getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments)
    if done == -1:
        raise OSError(ctypes.get_errno(), name)
    return done

def in_child(act, *arguments):
    child = os.fork()
    if child == 0:
        try:
            act(*arguments)
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise PermissionError("the child process could not")

say("begun")
"""

EPILOGUE = '\nsay("tried")\n'

Check = Callable[[Limits, Finished], str | None]


def came_to_its_end(limits: Limits, done: Finished) -> str | None:
    """The check of most attacks: the program has tried everything."""
    if done.ending is Ending.EXITED and done.exit_code == 0 and b"\ntried\n" in done.stdout:
        return None
    said = done.stderr[-200:].decode(errors="replace").strip()
    return f"it did not come to its end ({done.ending}, {done.exit_code}): {said}"


@dataclass(frozen=True)
class Attack:
    """A hostile program.

    `harmless_without`: it may be run without any isolation (`unsafe`) on a developer's machine, since all
    that it does there is bounded and undone. `limits` are changes of the limits under which attacks run,
    `loosened` such as take the protection away that it is aimed at (empty: limits are not what stops it).
    `check` tells from how it ended, by the limits that should have held, what was wrong; None if nothing
    was. One that `needs_group` is stopped only where a control group limits memory in total.
    """

    name: str
    tries: str
    program: str
    harmless_without: bool = True
    check: Check = came_to_its_end
    needs_group: bool = False
    limits: Mapping[str, Any] = field(default_factory=dict)
    loosened: Mapping[str, Any] = field(default_factory=dict)

    @property
    def source(self) -> bytes:
        """The whole program."""
        return (PRELUDE + self.program + EPILOGUE).encode()


def breach_said(output: bytes) -> str | None:
    """The first breach that a program reports."""
    found = re.search(rb"^breach: (.*)$", output, re.MULTILINE)
    return found[1].decode(errors="replace") if found else None
