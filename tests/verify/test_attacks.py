"""Hostile programs have no effect outside the sandbox; each would have one if its protection were gone."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ordinary_user import run_as_ordinary_user
from sandboxed import needs_sandbox
from sdzero.questions.programs import StdioTests
from sdzero.questions.question import Question
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.attack import Attack
from sdzero.verify.attack_answers import (
    ASSERTIONS,
    CALLS,
    HOSTILE_ANSWERS,
    RIGHT,
    HostileAnswer,
    Tests,
    attack_grading,
    attack_with,
    question_of,
    response_of,
)
from sdzero.verify.attack_programs import REACHING
from sdzero.verify.attack_scene import Scene
from sdzero.verify.attacks import ATTACKS, limits_for, run_attack, run_attacks, scene_for
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.code import CodeVerifier
from sdzero.verify.sandbox import Job, Sandbox, SandboxError
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Canary

pytestmark = needs_sandbox

SETTINGS = SandboxSettings()
UNSAFE = SandboxSettings(backend="unsafe")

SHOWN_OTHERWISE = {"descriptors", "killing everything", "poisoned output", "outliving the sandbox"}
"""Attacks with a test of their own, or none: the last can be shown only by a sandbox that lets it happen."""

LIMITED = [attack for attack in ATTACKS if attack.loosened]
ISOLATED = [attack for attack in ATTACKS if not attack.loosened and attack.name not in SHOWN_OTHERWISE]
NEEDS_RIGHTS = {"namespaces and mounts", "devices", "the kernel", "control groups", "core dump"}
"""Attacks that a container around the tests may stop too."""


def named(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


def by_name(attack: Attack | HostileAnswer) -> str:
    return attack.name


def has_all_rights() -> bool:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) & 1 << 21) and int(status["Seccomp"]) == 0  # CAP_SYS_ADMIN


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with opened(SETTINGS) as one:
        yield one


@pytest.fixture(scope="module")
def scene(sandbox: Sandbox) -> Iterator[Scene]:
    with scene_for(sandbox) as one:
        yield one


@pytest.fixture(scope="module")
def unprotected() -> Iterator[Sandbox]:
    with opened(UNSAFE) as one:
        yield one


# ---- attacks on the machine ----


@pytest.mark.parametrize("attack", ATTACKS, ids=by_name)
def test_an_attack_has_no_effect(attack: Attack, sandbox: Sandbox, scene: Scene) -> None:
    if attack.needs_group and "in total" not in sandbox.describe():
        pytest.skip("no control group may be made here, so memory is limited for each process only")
    result = run_attack(attack, sandbox, scene, limits_for(attack, SETTINGS))
    assert result.held, result.detail


@pytest.mark.parametrize("attack", LIMITED, ids=by_name)
def test_under_a_looser_limit_an_attack_shows(attack: Attack, sandbox: Sandbox, scene: Scene) -> None:
    result = run_attack(attack, sandbox, scene, limits_for(attack, SETTINGS), attack.loosened)
    assert not result.held


@pytest.mark.parametrize("attack", ISOLATED, ids=by_name)
def test_without_isolation_an_attack_shows(attack: Attack, unprotected: Sandbox, scene: Scene) -> None:
    assert attack.harmless_without
    result = run_attack(attack, unprotected, scene, limits_for(attack, UNSAFE))
    if result.held and attack.name in NEEDS_RIGHTS and not has_all_rights():
        pytest.skip("these tests run in a container, or as a user, without the rights that it takes")
    assert not result.held


def test_every_attack_is_shown_to_be_one() -> None:
    assert {attack.name for attack in (*LIMITED, *ISOLATED)} | SHOWN_OTHERWISE == {a.name for a in ATTACKS}
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)


def test_an_inherited_descriptor_shows(unprotected: Sandbox, scene: Scene) -> None:
    attack, command = named("descriptors"), ("/bin/sh", "-c", 'exec 9</dev/null; exec "$@"', "sh")
    assert run_attack(attack, unprotected, scene, limits_for(attack, UNSAFE)).held
    result = run_attack(attack, unprotected, scene, limits_for(attack, UNSAFE), command=command)
    assert "descriptor 9" in result.detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run it as a user that has nothing to lose")
def test_without_isolation_killing_everything_shows(unprotected: Sandbox, scene: Scene) -> None:
    attack = named("killing everything")
    result = run_attack(attack, unprotected, scene, limits_for(attack, UNSAFE))
    assert "a process outside was ended" in result.detail


def test_output_that_is_unpacked_would_do_harm(unprotected: Sandbox, scene: Scene) -> None:
    attack = named("poisoned output")
    command = (*unprotected.python(), unprotected.place("attack.py"), scene.told)
    done = unprotected.run(Job(command, limits_for(attack, UNSAFE), {"attack.py": attack.source}))
    assert scene.effects() == []
    unpack = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", unpack], input=done.stdout.removeprefix(b"begun\n"), check=True)
    assert scene.effects() == [f"a file was made in {scene.folder}"]


def test_a_program_that_does_nothing_has_not_held(sandbox: Sandbox, scene: Scene) -> None:
    for program in ("raise ZeroDivisionError", "os._exit(0)"):
        attack = Attack("nothing", "tries nothing", program)
        result = run_attack(attack, sandbox, scene, limits_for(attack, SETTINGS))
        assert not result.held
        assert "did not come to its end" in result.detail


def test_the_suite_leaves_nothing_behind(unprotected: Sandbox) -> None:
    before = {folder: set(os.listdir(folder)) for folder in ("/", "/usr", "/dev/shm", Path.home())}
    with scene_for(unprotected) as own:
        for name in ("writing outside", "shared memory", "secret files"):
            assert not run_attack(named(name), unprotected, own, limits_for(named(name), UNSAFE)).held
        token, folder, key = own.token, own.folder, json.loads(own.told)["shared"]["read"]
    assert not folder.exists()
    for place, names in before.items():
        assert not [name for name in set(os.listdir(place)) - names if token in name]
    assert str(key) not in Path("/proc/sysvipc/shm").read_text().split()


AS_ORDINARY_USER = """
import json
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.attack_programs import REACHING
from sdzero.verify.attacks import ATTACKS, limits_for, run_attack, scene_for
from sdzero.verify.backends import opened

chosen = REACHING + [one for one in ATTACKS if one.name in (
    "outliving the sandbox", "sleeping orphan", "fork bomb", "thread bomb", "memory in one process")]
settings = SandboxSettings()
with opened(settings) as sandbox, scene_for(sandbox) as scene:
    results = [run_attack(attack, sandbox, scene, limits_for(attack, settings)) for attack in chosen]
print(json.dumps([(result.name, result.held, result.detail) for result in results]))
"""


def test_attacks_have_no_effect_for_an_ordinary_user() -> None:
    results = json.loads(run_as_ordinary_user(AS_ORDINARY_USER))
    assert len(results) == len(REACHING) + 5
    assert [f"{name}: {detail}" for name, held, detail in results if not held] == []


def test_without_isolation_only_what_is_harmless_is_run(
    monkeypatch: pytest.MonkeyPatch, unprotected: Sandbox
) -> None:
    def refuse(job: Job) -> None:
        raise SandboxError("nothing is run here")

    monkeypatch.setattr(unprotected, "run", refuse)
    results = run_attacks(unprotected, UNSAFE)
    assert [result.name for result in results] == [one.name for one in ATTACKS if one.harmless_without]
    assert all("nothing is run here" in result.detail and not result.held for result in results)


# ---- attacks on the grading ----

GRADING = SandboxSettings(wall_seconds=0.75, cpu_seconds=0.75, memory_megabytes=256)

NAIVE = """
import json, sys
namespace = {"__name__": "program", "__file__": sys.argv[1]}
exec(open(sys.argv[1]).read(), namespace)
tests = json.load(open(sys.argv[2]))
if tests["kind"] == "calls":
    for case in tests["cases"]:
        expected = case["expected"]
        assert namespace[tests["entry"]](*case["arguments"]) == expected
else:
    exec(tests["code"], namespace)
print("PASSED")
"""
"""What graders often do: the program, the tests and the judgement in one process."""


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CodeVerifier]:
    one = CodeVerifier(GRADING, cache=tmp_path_factory.mktemp("verdicts") / "cache")
    yield one
    one.close()


@pytest.mark.parametrize(("tests", "program"), RIGHT)
def test_a_right_answer_to_the_same_tests_is_correct(
    verifier: CodeVerifier, tests: Tests, program: str
) -> None:
    verdict = verifier.grade(question_of(tests), response_of(program))
    assert verdict.outcome is Outcome.CORRECT, verdict.detail


@pytest.mark.parametrize("answer", HOSTILE_ANSWERS, ids=by_name)
def test_a_hostile_answer_is_neither_correct_nor_our_error(
    verifier: CodeVerifier, answer: HostileAnswer
) -> None:
    if answer.language == "cpp" and shutil.which(GRADING.compiler) is None:
        pytest.skip("there is no C++ compiler")
    result = attack_with(answer, verifier)
    assert result.held, result.detail


def fooled(sandbox: Sandbox, answer: HostileAnswer) -> bool:
    """Whether a naive grader takes the answer for right."""
    files = {"main.py": answer.program.encode()}
    if isinstance(answer.tests, StdioTests):
        case = answer.tests.cases[0]
        done = sandbox.run(
            Job((*sandbox.python(), sandbox.place("main.py")), limits_of(GRADING), files, case.input.encode())
        )
        return case.output.encode() in done.stdout
    files |= {"naive.py": NAIVE.encode(), "tests.json": answer.tests.model_dump_json().encode()}
    places = [sandbox.place(name) for name in ("naive.py", "main.py", "tests.json")]
    done = sandbox.run(Job((*sandbox.python(), *places), limits_of(GRADING), files))
    return done.exit_code == 0


@pytest.mark.parametrize("answer", [one for one in HOSTILE_ANSWERS if one.fools], ids=by_name)
def test_a_naive_grader_takes_a_hostile_answer_for_right(sandbox: Sandbox, answer: HostileAnswer) -> None:
    assert fooled(sandbox, answer)


def test_a_naive_grader_knows_a_wrong_answer_that_is_honest(sandbox: Sandbox) -> None:
    honest = HostileAnswer("honest", CALLS, "def twice(x):\n    return x + 1")
    assert not fooled(sandbox, honest)
    assert not fooled(sandbox, HostileAnswer("honest", ASSERTIONS, honest.program))
    assert fooled(sandbox, HostileAnswer("right", *RIGHT[0]))


def test_an_error_of_the_verifier_is_not_taken_for_a_defence() -> None:
    class Broken:
        name = "broken"

        def grade(self, question: Question, response: str) -> Verdict:
            raise SandboxError("it broke")

        def canaries(self) -> list[Canary]:
            return []

    results = attack_grading(Broken())
    assert len(results) >= sum(answer.language == "python" for answer in HOSTILE_ANSWERS)
    assert all(not result.held and "it broke" in result.detail for result in results)
