"""The command as a whole: help, completion, exit statuses, errors and JSON of every command."""

import json
import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import sdzero.compare
import sdzero.onprem.doctor
import sdzero.pipeline
import sdzero.studies.run
from sdzero.cli import app
from sdzero.cli.running import advice
from sdzero.errors import UserError
from sdzero.usage import EXIT_STATUSES
from support import micro_recipe


def leaves(group: Any, above: str = "") -> dict[str, Any]:
    """All commands by their words (`bundle make`), those of groups too."""
    found: dict[str, Any] = {}
    for name, own in group.commands.items():
        inner = hasattr(own, "commands")
        found |= leaves(own, f"{above}{name} ") if inner else {f"{above}{name}": own}
    return found


COMMANDS = leaves(get_command(app))
PAGE = Path(__file__).parents[1] / "docs/command.md"
WITH_JSON = ("run", "evaluate", "compare", "study", "inspect", "doctor", "watch", "init", "revise")
WIDE = {"COLUMNS": "300", "TERMINAL_WIDTH": "300"}


def bad_input(name: str) -> list[str]:
    """A command line that has all it needs, and none of it exists."""
    line = name.split()
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "argument" and parameter.nargs == 1:
            line.append("nothing/here")
        elif parameter.required:
            line += [parameter.opts[0], "nothing/here"]
    return line


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_help_page_has_an_example_that_its_command_takes(name: str) -> None:
    shown = CliRunner().invoke(app, [*name.split(), "--help"], env=WIDE)
    assert shown.exit_code == 0
    spelled = name.removesuffix(" make")  # `sdzero bundle RECIPE` makes
    (example,) = re.findall(rf"Example: (sdzero {spelled} .+?)\s*$", shown.output, re.MULTILINE)
    words = shlex.split(example)[1 + len(spelled.split()) :]
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= options
    COMMANDS[name].make_context(name, words, resilient_parsing=False).close()


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_bad_input_is_told_without_a_traceback(name: str) -> None:
    told = CliRunner().invoke(app, bad_input(name))
    assert told.exit_code == 1, told.output
    assert isinstance(told.exception, SystemExit), repr(told.exception)
    assert "Traceback" not in told.output
    assert told.stderr.startswith("error:")
    assert "to do:" in told.stderr
    assert not list(Path.cwd().iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    "line",
    [
        ["no-such-command"],
        ["--no-such-option"],
        *([*name.split(), "--no-such-option"] for name in sorted(COMMANDS)),
    ],
)
def test_wrong_usage_is_told_in_the_same_form(line: list[str]) -> None:
    told = CliRunner().invoke(app, line)
    assert told.exit_code == 2
    assert told.stderr.startswith("error: no such ")
    assert "  where: " in told.stderr
    assert "--help`" in told.stderr
    assert "Traceback" not in told.output


def test_a_missing_argument_and_a_value_out_of_range() -> None:
    for line, told in ((["run"], "missing argument"), (["run", "x", "--seeds", "0"], "invalid value for")):
        result = CliRunner().invoke(app, line)
        assert result.exit_code == 2
        assert result.stderr.startswith(f"error: {told}")
        assert "to do: see `" in result.stderr


def test_without_arguments_it_shows_its_help() -> None:
    shown = CliRunner().invoke(app, [])
    assert shown.exit_code == 2
    assert all(name.split()[0] in shown.output for name in COMMANDS)


def test_the_exit_statuses_are_those_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE))
    assert rows == {str(status): meaning for status, meaning in EXIT_STATUSES.items()}

    def ends(error: BaseException | None) -> int:
        def examine(*arguments: Any) -> list[Any]:
            if error is not None:
                raise error
            return []

        monkeypatch.setattr(sdzero.onprem.doctor, "examine", examine)
        return CliRunner().invoke(app, ["doctor"]).exit_code

    own = [ends(None), ends(UserError("x", todo="y")), ends(RuntimeError("x")), ends(KeyboardInterrupt())]
    assert own == [0, 1, 1, 130]
    assert {*own, CliRunner().invoke(app, ["doctor", "--nothing"]).exit_code} == set(EXIT_STATUSES)


def test_completion_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"_SDZERO_COMPLETE": "complete_bash", "COMP_WORDS": "sdzero re", "COMP_CWORD": "1"}
    shown = CliRunner().invoke(app, [], prog_name="sdzero", env=words)
    assert "revise" in shown.output.split()
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")
    script = CliRunner().invoke(app, ["--show-completion", "bash"], prog_name="sdzero")
    assert "_SDZERO_COMPLETE=complete_bash" in script.output


def test_every_command_that_prints_a_table_has_json() -> None:
    for name in WITH_JSON:
        assert "--json" in {option for parameter in COMMANDS[name].params for option in parameter.opts}, name


def asked_as_json(*line: str | Path) -> Any:
    """What the command gives as JSON; standard output must hold nothing else."""
    result = CliRunner().invoke(app, [*map(str, line), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout), result.stderr


class FakeStages:
    """Stages that are finished: all they do is give results, and make noise."""

    def __init__(self, report: Any) -> None:
        self._report = report

    def run_all(self) -> dict[str, Any]:
        self._report("at work")
        print("noise of a library")
        return {"schema": 1, "own": "run"}

    def evaluate_all(self) -> dict[str, Any]:
        return self.run_all() | {"own": "evaluate"}


def test_json_of_runs_is_alone_on_standard_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def open_run(recipe: Any, folder: Path, report: Any, progress: Any) -> Iterator[FakeStages]:
        progress("a", 1, 1)
        yield FakeStages(report)

    def results(settings: Any, folder: Path, *arguments: Any) -> dict[str, Any]:
        print("noise of a library")
        return {"schema": 1, "own": "several"}

    monkeypatch.setattr(sdzero.pipeline, "open_run", open_run)
    monkeypatch.setattr(sdzero.compare, "compare", results)
    monkeypatch.setattr(sdzero.studies.run, "run_study", results)
    recipe = micro_recipe(tmp_path)
    for line, own in (
        (["run"], "run"),
        (["evaluate"], "evaluate"),
        (["compare"], "several"),
        (["study", "loss"], "several"),
    ):
        given, errors = asked_as_json(*line, recipe)
        assert given == {"schema": 1, "own": own}
        assert "noise of a library" in errors
    assert "loss" in asked_as_json("study", "list")[0]


def test_json_of_sequences(micro_run: Path) -> None:
    rows, _ = asked_as_json("inspect", micro_run, "--count", "1")
    assert {row["reward"] for row in rows} <= {0, 1}
    training = [row for row in rows if "weights" in row]
    pairs = [row for row in rows if "targets" in row]
    assert training
    assert pairs
    for row in training:
        assert len(row["token_ids"]) == len(row["weights"])
        assert row["text"]
    for row in pairs:
        assert row["student_ids"][row["student_logit_positions"][0] + 1] == row["targets"][0]


def test_advice_fits_the_error() -> None:
    assert "micro_batch_size" in advice(MemoryError())
    assert "readable" in advice(PermissionError(13, "Permission denied", "model"))
    assert "--debug" in advice(RuntimeError("something"))
