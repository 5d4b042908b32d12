"""Look at the machine before a run does: what is installed, what isolates programs, what a recipe needs.

A check is a function in `CHECKS`: it is given the `Subject` and yields findings. A UserError (or a
SandboxError) in it becomes a finding that failed. Without a recipe nothing here imports torch.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.run_dir import package_versions
from sdzero.verify.sandbox import SandboxError

SCHEMA = 1
KINDS_SHOWN = 4
ADDING = (
    "#include <iostream>\n"
    "int main() { long long a, b; std::cin >> a >> b; std::cout << a + b << std::endl; }\n"
)


@dataclass(frozen=True)
class Finding:
    """What a check found. `todo` says how to mend what did not hold."""

    name: str
    held: bool
    detail: str
    todo: str = ""


@dataclass
class Subject:
    """What is looked at: this machine, and a recipe's needs if there is one. `failed` are checks so far."""

    recipe: Recipe | None = None
    failed: set[str] = field(default_factory=set)

    @property
    def runs_programs(self) -> bool:
        """Whether programs of a model will be run here, as far as is known."""
        return self.recipe is None or self.recipe.verifier.name == "code"

    @property
    def sandbox(self) -> SandboxSettings:
        """The recipe's sandbox, or the default one."""
        return SandboxSettings() if self.recipe is None else self.recipe.verifier.sandbox


Check = Callable[[Subject], Iterator[Finding]]


def examine(recipe: Recipe | None) -> list[Finding]:
    """Do every check, in order."""
    subject = Subject(recipe)
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
    """Python and the packages that decide a run's numbers are installed."""
    for name, version in package_versions().items():
        if version is None:
            yield Finding(name, False, "not installed", "install sdzero again: pip install sdzero")
        else:
            yield Finding(name, True, version)


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


def model(subject: Subject) -> Iterator[Finding]:
    """The recipe's model is on this machine, whole, and has a chat template that serves."""
    if subject.recipe is None:
        return
    from sdzero.method.roles import Roles
    from sdzero.method.thinking import thinking_of, thinking_warning
    from sdzero.models import load_tokenizer, resolve_path

    path = subject.recipe.model.path
    folder = Path(resolve_path(path))
    if not folder.is_dir():
        folder = _downloaded(path)
    missing = missing_weights(folder)
    if missing:
        raise UserError(f"the model is not whole: there is no {missing[0]}", str(folder), "copy it again")
    tokenizer = load_tokenizer(str(folder))
    Roles(tokenizer, subject.recipe.phrases, subject.recipe.chat)
    yield Finding("model", True, path if tiny.world_of_model(path) else str(folder))
    thinking = thinking_of(tokenizer, subject.recipe.chat)
    warning = thinking_warning(thinking, subject.recipe.distill)
    if warning is not None:
        yield Finding("thinking", True, f"warning: {warning}")
    elif thinking.kind != "none":
        state = (
            f"with distill.divergence_on={subject.recipe.distill.divergence_on}" if thinking.is_on else "off"
        )
        yield Finding("thinking", True, f"a thinking model, {state} ({'; '.join(thinking.seen)})")


def missing_weights(folder: Path) -> list[str]:
    """Files of weights that a model's folder should have and has not."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [name for name in wanted if not (folder / name).is_file()]
    found = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    return [] if found else ["model.safetensors"]


def _downloaded(hub_id: str) -> Path:
    """Where the hub's client keeps a model. Raises UserError if it was never downloaded."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        raise UserError(
            f"the model {hub_id} is not on this machine",
            "model.path",
            "let a machine with a network download it, copy it here, and set model.path to its folder",
        )
    return Path(config).parent


CHECKS: tuple[Check, ...] = (versions, rollout, sandbox, attacks, compiler, data, verifier, model)
"""Every check, in the order of the table."""


# ---- showing ----


def show_json(findings: Sequence[Finding]) -> str:
    """The findings for a script: `held`, and `checks` with `name`, `held`, `detail` and `todo`."""
    held = all(finding.held for finding in findings)
    checks = [asdict(finding) for finding in findings]
    return json.dumps({"schema": SCHEMA, "held": held, "checks": checks}, indent=2)


def show(findings: Sequence[Finding], console: Console) -> None:
    """The findings for a person: a table with `ok` or `FAILED`, and what to do for each failure."""
    table = Table("check", "result", "found")
    for finding in findings:
        result = Text("ok", "green") if finding.held else Text("FAILED", "red")
        table.add_row(Text(finding.name), result, Text(finding.detail))
    console.print(table)
    failures = [finding for finding in findings if not finding.held]
    for finding in failures:
        line = f"{finding.name}: FAILED" + (f"\n  to do: {finding.todo}" if finding.todo else "")
        console.print(Text(line), soft_wrap=True)
    if not failures:
        console.print("everything held")
