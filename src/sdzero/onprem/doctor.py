"""Look at the machine before a run does: what is installed, what isolates programs, what a recipe needs.

A check is a function in `CHECKS`: it is given the `Subject` and yields findings. A UserError (or a
SandboxError) in it becomes a finding that failed. Without a recipe nothing here imports torch.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdzero.errors import UserError
from sdzero.onprem.energy_check import energy
from sdzero.onprem.findings import WARNING, Check, Finding, Subject
from sdzero.onprem.gpu import gpu
from sdzero.onprem.model_checks import model, tokenizer
from sdzero.onprem.offline import offline
from sdzero.onprem.plan_check import planned_memory
from sdzero.onprem.room import room
from sdzero.onprem.self_test import self_test
from sdzero.onprem.tested import judge
from sdzero.recipe import Recipe
from sdzero.run_dir import package_versions
from sdzero.verify.sandbox import SandboxError

SCHEMA = 1
KINDS_SHOWN = 4
ADDING = (
    "#include <iostream>\n"
    "int main() { long long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n"
)


def examine(recipe: Recipe | None, quick: bool = False, folder: Path | None = None) -> list[Finding]:
    """Do every check, in order; `quick` leaves out the self-test, `folder` is where the run would be."""
    subject = Subject(recipe, quick=quick, folder=folder)
    findings: list[Finding] = []
    for check in CHECKS:
        own: list[Finding] = []
        try:
            for finding in check(subject):
                own.append(finding)
        except UserError as fault:
            where = f" ({fault.where})" if fault.where else ""
            own.append(Finding(check.__name__, False, f"{fault.what}{where}", fault.todo or ""))
        except SandboxError as fault:
            own.append(Finding(check.__name__, False, f"the sandbox failed: {fault}", "see docs/sandbox.md"))
        except PermissionError as fault:
            own.append(Finding(check.__name__, False, str(fault), "check the permissions"))
        # Whatever else breaks is the finding that people need most, and the other checks are still of use.
        except Exception as fault:
            detail = f"the check itself broke: {type(fault).__name__}: {fault}"
            own.append(Finding(check.__name__, False, detail, "report it as a fault of sdzero"))
        if not all(finding.held for finding in own):
            subject.failed.add(check.__name__)
        findings += own
    return findings


# ---- the checks ----


def versions(subject: Subject) -> Iterator[Finding]:
    """Python and the packages that decide a run's numbers are installed, as the tests were run with them."""
    for name, version in package_versions().items():
        if version is None:
            yield Finding(name, False, "not installed", "install sdzero again: pip install sdzero")
        else:
            yield judge(name, version)


def rollout(subject: Subject) -> Iterator[Finding]:
    """vLLM is there, in a version that was tested, if the recipe samples with it; else it is only named."""
    from sdzero.rollout.vllm_package import DISTRIBUTIONS, INSTALL, TESTED, installed, is_tested

    asked = subject.recipe is not None and subject.recipe.rollout.engine == "vllm"
    found = installed()
    if asked and subject.recipe is not None and subject.recipe.rollout.vllm.url is not None:
        yield Finding("vllm", True, f"a server of yours: {subject.recipe.rollout.vllm.url} (not asked)")
    elif found is None:
        detail = "not installed" if asked else "not installed (only for rollout.engine: vllm)"
        yield Finding("vllm", not asked, detail, INSTALL if asked else "")
    elif is_tested(found[1]):
        yield Finding("vllm", True, f"{found[0]} {found[1]}")
    else:
        names = " or ".join(f"'{name}=={TESTED}.*'" for name in DISTRIBUTIONS)
        yield Finding(
            "vllm",
            not asked,
            f"{found[0]} {found[1]}; tested is {TESTED}",
            f"pip install {names}" if asked else "",
        )


def sandbox(subject: Subject) -> Iterator[Finding]:
    """Programs can be run in isolation."""
    from sdzero.verify.backends import opened

    if not subject.runs_programs:
        assert subject.recipe is not None
        yield Finding("sandbox", True, f"not needed by the verifier `{subject.recipe.verifier.name}`")
        return
    if subject.sandbox.backend == "unsafe":
        yield Finding(
            "sandbox",
            False,
            "the backend `unsafe` isolates nothing: programs run with your rights",
            "set verifier.sandbox.backend=bubblewrap",
        )
        return
    with opened(subject.sandbox) as one:
        yield Finding("sandbox", True, one.describe())


def attacks(subject: Subject) -> Iterator[Finding]:
    """The sandbox holds against each attack of the suite."""
    if not subject.runs_programs or "sandbox" in subject.failed:
        return
    from sdzero.verify.attacks import run_attacks
    from sdzero.verify.backends import opened

    todo = (
        "run no programs of a model here before this holds: update bubblewrap and the kernel, or use docker"
    )
    in_total = (
        "memory is limited for each process only: run as root or in a session whose control groups systemd"
        " has delegated, or lower verifier.sandbox.processes and memory_megabytes (docs/sandbox.md)"
    )
    with opened(subject.sandbox) as one:
        for result in run_attacks(one, subject.sandbox):
            name = f"attack: {result.name}"
            if result.held:
                yield Finding(name, True, result.detail or "had no effect")
            else:
                yield Finding(name, False, result.detail, in_total if result.needs_group else todo)


def compiler(subject: Subject) -> Iterator[Finding]:
    """A program in C++ is compiled and run, if the recipe asks for C++ or there is no recipe."""
    asked = subject.recipe is None or "cpp" in subject.recipe.data.languages
    if not subject.runs_programs or not asked or "sandbox" in subject.failed:
        return
    from sdzero.questions.programs import ProgramTask, StdioCase, StdioTests
    from sdzero.verify.backends import make_sandbox
    from sdzero.verify.program_runs import ProgramRunner
    from sdzero.verify.verdict import Outcome

    runner = ProgramRunner(make_sandbox(subject.sandbox), subject.sandbox)
    try:
        if not runner.has_compiler():
            yield Finding(
                "compiler",
                False,
                f"there is no `{subject.sandbox.compiler}`, so no C++ can be graded",
                "install g++ (Debian, Ubuntu: apt-get install g++), or ask for Python only",
            )
            return
        task = ProgramTask(language="cpp", tests=StdioTests(cases=[StdioCase(input="2 3\n", output="5\n")]))
        verdict = runner.grade(task, ADDING)
        held = verdict.outcome is Outcome.CORRECT
        yield Finding(
            "compiler",
            held,
            runner.versions("cpp") if held else f"a program in C++ is {verdict.outcome}: {verdict.detail}",
            "" if held else "see verifier.sandbox.compiler, compiler_options and the limits of compiling",
        )
    finally:
        runner.close()


def data(subject: Subject) -> Iterator[Finding]:
    """The recipe's questions load, and there are enough of them."""
    if subject.recipe is None:
        return
    from sdzero.questions.sources import load_questions
    from sdzero.questions.splits import split_questions
    from sdzero.verify.code import check_languages

    settings = subject.recipe.data
    questions = load_questions(settings, empty_answers=subject.recipe.labels.is_majority)
    split_questions(questions, settings)
    if subject.runs_programs:
        check_languages(questions, subject.sandbox)
    kinds = Counter(question.kind for question in questions)
    shown = f" ({', '.join(f'{count:,} {kind}' for kind, count in sorted(kinds.items()))})"
    yield Finding(
        "data",
        True,
        f"{settings.path or settings.source}: {len(questions):,} distinct questions"
        + (shown if 1 < len(kinds) <= KINDS_SHOWN else ""),
    )


def verifier(subject: Subject) -> Iterator[Finding]:
    """The recipe's verifier starts and grades its canaries as it should."""
    if subject.recipe is None:
        return
    from sdzero.verify.agreement import voter_of
    from sdzero.verify.pool import pool_of

    one_worker = subject.recipe.verifier.model_copy(update={"workers": 1})
    with pool_of(one_worker) as pool:
        pool.check_canaries()
    if subject.recipe.labels.is_majority:
        voter_of(one_worker.name)
    yield Finding("verifier", True, f"`{one_worker.name}` starts, and grades none of its canaries wrongly")


def trackers(subject: Subject) -> Iterator[Finding]:
    """The trackers that the recipe reports to are installed."""
    if subject.recipe is None or not subject.recipe.report_to:
        return
    from sdzero.tracking import check_installed

    check_installed(subject.recipe.report_to)
    yield Finding("trackers", True, f"installed: {', '.join(subject.recipe.report_to)}")


CHECKS: tuple[Check, ...] = (
    versions,
    gpu,
    rollout,
    sandbox,
    attacks,
    compiler,
    data,
    verifier,
    trackers,
    model,
    tokenizer,
    room,
    planned_memory,
    offline,
    energy,
    self_test,
)
"""Every check, in the order of the table."""


# ---- showing ----


def show_json(findings: Sequence[Finding]) -> str:
    """The findings for a script: `held`, and `checks` with `name`, `held`, `detail` and `todo`."""
    held = all(finding.held for finding in findings)
    checks = [asdict(finding) for finding in findings]
    return json.dumps({"schema": SCHEMA, "held": held, "checks": checks}, indent=2)


def show(findings: Sequence[Finding], console: Console) -> None:
    """The findings for a person: a table with `ok`, `warning` or `FAILED`, and what to do about each."""
    table = Table("check", "result", "found")
    for finding in findings:
        result = Text("ok", "green") if finding.held else Text("FAILED", "red")
        if finding.is_warning:
            result = Text("warning", "yellow")
        table.add_row(Text(finding.name), result, Text(finding.detail.removeprefix(WARNING)))
    console.print(table)
    failures = [finding for finding in findings if not finding.held]
    for finding in (one for one in findings if not one.held or (one.is_warning and one.todo)):
        state = "warning" if finding.held else "FAILED"
        line = f"{finding.name}: {state}" + (f"\n  to do: {finding.todo}" if finding.todo else "")
        console.print(Text(line), soft_wrap=True)
    if not failures:
        console.print("everything held")
