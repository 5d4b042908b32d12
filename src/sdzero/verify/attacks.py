"""The attack suite: run hostile programs in a sandbox and look, from outside, whether one had an effect."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.attack import Attack, breach_said
from sdzero.verify.attack_floods import FLOODING
from sdzero.verify.attack_programs import REACHING
from sdzero.verify.attack_scene import Scene
from sdzero.verify.backends import limits_of
from sdzero.verify.sandbox import Finished, Job, Limits, Sandbox, SandboxError

ATTACKS = [*REACHING, *FLOODING]

ATTACK_LIMITS = Limits(
    wall_seconds=5.0,
    cpu_seconds=5.0,
    memory_megabytes=128,
    processes=16,
    open_files=64,
    file_megabytes=4,
    disk_megabytes=8,
    output_megabytes=1,
)
"""Small, so that what goes beyond them is quick and harmless too."""

_DETAIL_LENGTH = 300


@dataclass(frozen=True)
class AttackResult:
    """`held`: the attack had no effect; if it had one, `detail` says which.

    `needs_group`: only a control group, which limits memory in total, stops it.
    """

    name: str
    held: bool
    detail: str
    needs_group: bool = False


def run_attacks(sandbox: Sandbox, settings: SandboxSettings) -> list[AttackResult]:
    """Run the suite, under its own limits or the recipe's where those are tighter; about ten seconds.

    In a sandbox that does not isolate only those attacks are run that are harmless without.
    """
    with scene_for(sandbox) as scene:
        return [
            run_attack(attack, sandbox, scene, limits_for(attack, settings))
            for attack in ATTACKS
            if attack.harmless_without or sandbox.name != "unsafe"
        ]


def scene_for(sandbox: Sandbox) -> Scene:
    """What lies outside this sandbox; a context manager."""
    interpreter = Path(sandbox.python()[0])
    folders = list(interpreter.parents)[:2] if interpreter.is_absolute() else []  # else an image's own
    return Scene([str(folder) for folder in folders])


def limits_for(attack: Attack, settings: SandboxSettings) -> Limits:
    """The limits under which an attack runs."""
    recipe = limits_of(settings)
    tighter = {
        one.name: min(getattr(ATTACK_LIMITS, one.name), getattr(recipe, one.name)) for one in fields(Limits)
    }
    return replace(Limits(**tighter), **attack.limits)


def run_attack(
    attack: Attack,
    sandbox: Sandbox,
    scene: Scene,
    limits: Limits,
    loosened: Mapping[str, Any] | None = None,
    command: Iterable[str] = (),
) -> AttackResult:
    """Run one attack and judge it by `limits`.

    For tests of the attack itself: it runs with `loosened` limits, and behind `command`.
    """
    words = (*command, *sandbox.python(), sandbox.place("attack.py"), scene.told)
    job = Job(words, replace(limits, **(loosened or {})), {"attack.py": attack.source})
    try:
        done = sandbox.run(job)
    except SandboxError as fault:
        found = [f"the sandbox failed: {fault}"]
    else:
        judged_by = replace(limits, wall_seconds=limits.wall_seconds + sandbox.start_seconds)
        found = _found(attack, judged_by, done, scene)
    found += scene.effects()
    return AttackResult(attack.name, not found, "; ".join(found)[:_DETAIL_LENGTH], attack.needs_group)


def _found(attack: Attack, limits: Limits, done: Finished, scene: Scene) -> list[str]:
    """What the program's output and its end tell; never the output itself, which may hold your secrets."""
    written, found = done.stdout + done.stderr, []
    if not done.stdout.startswith(b"begun\n"):
        said = done.stderr[-200:].decode(errors="replace")
        found.append(f"it did not begin ({done.ending}, {done.exit_code}): {said}")
    if scene.secret.encode() in written:
        found.append("it read a secret")
    found += [said for said in (breach_said(written), attack.check(limits, done)) if said is not None]
    return found
