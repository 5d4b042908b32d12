"""Hostile and broken programs, one after another: nothing of them is left, and nothing grows.

The mix is fixed by its seed. One program in twenty is right, so that grading is known to work to the end.
"""

import contextlib
import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from machine import children_of, groups_of, memory_megabytes, open_descriptors, sandboxed_processes
from sandboxed import block, needs_sandbox
from sdzero.questions.programs import Language
from sdzero.questions.question import Question
from sdzero.recipe import VerifierSettings
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.attack_answers import HOSTILE_ANSWERS, RIGHT, STDIO, question_of, response_of
from sdzero.verify.attack_scene import Scene
from sdzero.verify.attacks import ATTACKS
from sdzero.verify.bubblewrap import USERS
from sdzero.verify.pool import pool_of
from sdzero.verify.verdict import Outcome

pytestmark = needs_sandbox

PROGRAMS, QUICK = 10_000, 60
SEED = 20
BATCHES = 50
GROWTH_MEGABYTES = 8
"""From the second quarter to the last a worker may grow by this much: two kilobytes for each program."""

LATE_SHARE = 0.1
"""Of the right programs so many may be late, on a machine that is busy: half a second is all they have."""

GONE_WITHIN_SECONDS = 30.0
SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm", "/run")

SANDBOX = SandboxSettings(
    wall_seconds=0.5,
    cpu_seconds=0.5,
    memory_megabytes=128,
    processes=16,
    open_files=64,
    file_megabytes=4,
    disk_megabytes=8,
    output_megabytes=1,
    cache=False,
)

BROKEN: list[tuple[int, Language, str]] = [
    (6, "python", "print(2 * int(input())"),
    (4, "python", "def f(:\n\treturn\n  return"),
    (4, "python", "x = 'never closed"),
    (6, "python", "print(1 / 0)"),
    (4, "python", "raise KeyError('SALT')"),
    (4, "python", "import no_such_module"),
    (4, "python", "print(3 * int(input()))"),
    (3, "python", "import sys\nsys.exit(SALT % 200 + 1)"),
    (3, "python", "import os\nos.abort()"),
    (2, "python", "import ctypes\nctypes.string_at(SALT)"),
    (3, "python", "def f(n):\n    return f(n + 1)\nf(SALT)"),
    (3, "python", "while True:\n    pass"),
    (2, "python", "import time\ntime.sleep(60)"),
    (1, "python", "while input():\n    pass\nimport threading\nthreading.Lock().acquire()\ninput()"),
    (3, "python", "x = bytearray(1 << 30)"),
    (3, "python", "x = []\nwhile True:\n    x.append('SALT' * 100_000)"),
    (3, "python", "while True:\n    print('SALT' * 1000)"),
    (2, "python", "import sys\nwhile True:\n    sys.stderr.write('SALT' * 1000)"),
    (3, "python", "for i in range(SALT % 50):\n    open(str(i), 'wb').write(bytes(1 << 20))"),
    (3, "python", "import os\nfor _ in range(5):\n    os.fork()\nos.setsid()\nwhile True:\n    pass"),
    (3, "python", "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)"),
    (2, "python", "import os\nos.closerange(0, 3)\nos.kill(os.getppid(), 9)"),
    (2, "python", "\x00SALT"),
    (1, "cpp", "int main() { return SALT }"),
    (1, "cpp", '#include <cstdio>\nint main() { for (;;) std::puts("SALT"); }'),
    (1, "cpp", "int main() { int *p = nullptr; *p = SALT; }"),
]
"""How often, in which language, what: none does what is asked. SALT is a number, another one each time."""

Item = tuple[Question, str]


def mix(count: int, scene: Scene) -> Iterator[tuple[str, Item]]:
    """Programs in a fixed order, with what they are: `right`, or else not."""
    numbers = random.Random(SEED)
    compiles = shutil.which(SANDBOX.compiler) is not None
    answers = [one for one in HOSTILE_ANSWERS if compiles or one.language == "python"]
    broken = [one for one in BROKEN if compiles or one[1] == "python"]
    for number in range(count):
        salt, kind = str(numbers.randrange(1, 1 << 30)), numbers.random()
        if number % 20 == 0:
            tests, program = RIGHT[number // 20 % len(RIGHT)]
            yield "right", (question_of(tests), response_of(f"{program}\n# {salt}"))
        elif kind < 0.25:
            answer = numbers.choice(answers)
            yield f"answer: {answer.name}", (answer.question, answer.response)
        elif kind < 0.5:
            attack = numbers.choice(ATTACKS)
            program = f"import sys\nsys.argv.append({scene.told!r})\n{attack.source.decode()}"
            yield f"attack: {attack.name}", (question_of(STDIO), block(program))
        else:
            _, language, program = numbers.choices(broken, [weight for weight, _, _ in broken])[0]
            source = program.replace("SALT", salt)
            yield f"broken: {program[:30]!r}", (question_of(STDIO, language), block(source, language))


def left_in_shared_folders(token: str) -> set[str]:
    """What belongs to a user that programs run as, or bears the scene's token."""
    found = set()
    for folder in SHARED_FOLDERS:
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):  # others work here too
                if token in entry.name or entry.stat(follow_symlinks=False).st_uid in USERS:
                    found.add(entry.path)
    return found


def endure(count: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Grade so many programs, then look for what is left."""
    private = [folder / name for name in ("home", "temporary")]
    for name, path in zip(("HOME", "TMPDIR"), private, strict=True):
        path.mkdir()
        monkeypatch.setenv(name, str(path))
    began, processes = time.monotonic(), sandboxed_processes()
    descriptors, children = open_descriptors(), children_of(os.getpid())
    settings = VerifierSettings(name="code", workers=2, timeout_seconds=60.0, sandbox=SANDBOX)
    outcomes: Counter[tuple[str, Outcome]] = Counter()
    samples: list[dict[int, tuple[float, int]]] = []
    fooled: list[str] = []
    with Scene([]) as scene:
        bystander = scene.bystander.pid
        items = list(mix(count, scene))
        with pool_of(settings) as pool:
            size = -(-count // BATCHES)
            for start in range(0, count, size):
                batch = items[start : start + size]
                verdicts = pool.grade([item for _, item in batch])
                for (what, _), verdict in zip(batch, verdicts, strict=True):
                    outcomes[what, verdict.outcome] += 1
                    if verdict.outcome in (Outcome.ERROR, Outcome.CORRECT) and what != "right":
                        fooled.append(f"{what}: {verdict}")
                        print(fooled[-1], flush=True)
                workers = children_of(os.getpid()) - children - {bystander}
                samples.append(
                    {one: (memory_megabytes(one), len(os.listdir(f"/proc/{one}/fd"))) for one in workers}
                )
                shown = ", ".join(f"{memory:.1f} MB {files} open" for memory, files in samples[-1].values())
                done, seconds = start + len(batch), time.monotonic() - began
                print(f"{done} of {count}, {seconds:.0f} s: {shown}", flush=True)
        assert scene.effects() == []
        token = scene.token

    for (what, outcome), times in sorted(outcomes.items()):
        print(f"{times:5} {outcome:15} {what}")
    assert fooled == []
    right = Counter({outcome: times for (what, outcome), times in outcomes.items() if what == "right"})
    assert set(right) <= {Outcome.CORRECT, Outcome.TIMEOUT}
    assert right[Outcome.CORRECT] >= (1 - LATE_SHARE) * right.total()

    # The same two workers did everything, and none has grown.
    assert all(sample.keys() == samples[0].keys() and len(sample) == 2 for sample in samples)
    quarter = len(samples) // 4
    for worker in samples[0]:
        # The least of many: a large answer just before shows for a while, as do the pipes of a program that
        # is being tidied away.
        early, late = (
            [min(sample[worker][what] for sample in some) for what in (0, 1)]
            for some in (samples[quarter : 2 * quarter], samples[-quarter:])
        )
        assert late[0] - early[0] <= GROWTH_MEGABYTES
        assert late[1] == early[1]
        assert groups_of(worker) == []
    assert open_descriptors() == descriptors
    assert children_of(os.getpid()) == children

    # Sandboxes of others have programs too, but none for long.
    left, give_up = sandboxed_processes() - processes, time.monotonic() + GONE_WITHIN_SECONDS
    while left and time.monotonic() < give_up:
        time.sleep(0.1)
        left &= sandboxed_processes()
    assert not left
    assert [list(path.iterdir()) for path in private] == [[], []]
    assert left_in_shared_folders(token) == set()


def test_many_hostile_programs_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endure(QUICK, tmp_path, monkeypatch)


@pytest.mark.slow
def test_ten_thousand_hostile_programs_leave_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endure(PROGRAMS, tmp_path, monkeypatch)
