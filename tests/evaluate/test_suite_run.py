"""Suites through the command: the embedded model, resuming, contamination, a short context; programs."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from typer.testing import CliRunner

from evaluate.suite_rows import rows_of, write_jsonl
from sandboxed import block, needs_sandbox
from sdzero import tiny
from sdzero.cli import app
from sdzero.evaluate.suite_data import load_benchmark
from sdzero.evaluate.suite_run import score_suite, verifier_settings
from sdzero.evaluate.suite_table import notes, suite_table
from sdzero.evaluate.suites import BENCHMARKS
from sdzero.method.roles import Roles
from sdzero.models import load_model, load_tokenizer, save_model
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import QuestionSets, split_questions
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.run_context import RunContext
from sdzero.verify.pool import pool_of
from support import Bench, micro_recipe, read_jsonl

SMALL = {"k": 2, "max_new_tokens": 64, "batch_size": 6, "math_instruction": None}
"""A suite's settings for the embedded model, which reads no instruction and has a short context."""


def sets_of(recipe: Recipe) -> QuestionSets:
    """The sets that a run of the recipe has."""
    return split_questions(load_questions(recipe.data), recipe.data)


def aime_rows(recipe: Recipe) -> list[dict[str, Any]]:
    """Arithmetic in the columns of AIME: four test questions, and two that the recipe trains on."""
    sets = sets_of(recipe)
    questions = [*sets.test[:4], sets.n1[0], sets.tuning[0]]
    return [{"id": i, "problem": q.text, "answer": q.answer} for i, q in enumerate(questions)]


class Suite:
    """A recipe, a folder of benchmarks and a run's folder, and the command on them."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder, self.run, self.data = folder, folder / "run", folder / "benchmarks"
        self.recipe = micro_recipe(folder, {"suite": SMALL} | changes)
        self.data.mkdir()

    def command(self, *arguments: str | Path, status: int = 0) -> str:
        """Run `sdzero evaluate`; what it printed, or where it must fail the error."""
        fixed = ("evaluate", self.recipe, "-o", self.run, "--suite-data", self.data)
        result = CliRunner().invoke(app, [str(one) for one in (*fixed, *arguments)])
        assert result.exit_code == status, result.output
        return result.stderr if status else result.output

    def scores(self, suite: str) -> Any:
        return json.loads((self.run / f"suites/{suite}.json").read_text())

    def batches(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in self.run.glob("suites/scored/**/batch-*.jsonl")}


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """AIME24 as arithmetic for the embedded model."""
    made = Suite(tmp_path)
    write_jsonl(made.data / "aime24.jsonl", aime_rows(load_recipe(made.recipe)))
    return made


def test_the_command_scores_the_base_model_and_says_what_is_trained_on(suite: Suite) -> None:
    output = suite.command("--suite", "aime24")
    assert "WARNING: AIME24 has 30 questions, but" in output
    assert "WARNING: 2 of 6 questions of AIME24 are trained on" in output
    assert "compared with 52 training questions" in output

    found = suite.scores("aime24")
    about, base = found["benchmarks"]["aime24"], found["models"]["base"]["benchmarks"]["aime24"]
    assert (about["questions"], about["expected"]) == (6, 30)
    assert about["contamination"] == {"exact": 2, "overlap": 0}
    assert found["sampling"] == {"k": 2, "temperature": 0.7, "top_p": 1.0, "max_new_tokens": 64}
    assert found["paper"] is None
    rewards = base["per_question"]
    assert set(rewards) == {"0", "1", "2", "3", "4", "5"}
    assert all(len(own) == 2 for own in rewards.values())
    assert base["avg"] == pytest.approx(sum(map(sum, rewards.values())) / 12)
    assert base["clean"]["avg"] == pytest.approx(sum(sum(rewards[i]) for i in "0123") / 8)
    assert base["clean"]["questions"] == 4
    assert sum(base["verdicts"].values()) == 12
    assert base["interval"][0] <= base["avg"] <= base["interval"][1]
    assert 0 < base["mean_tokens"] <= 64

    listed = read_jsonl(suite.run / "suites/contamination/aime24.jsonl")
    recipe = load_recipe(suite.recipe)
    assert [(m["question"], m["set"], m["how"]) for m in listed] == [
        ("4", "n1", "exact"),
        ("5", "tuning", "exact"),
    ]
    assert listed[0]["training"] == sets_of(recipe).n1[0].id
    assert "6, 2 trained on" in output
    assert "suites/aime24.json" in output


def test_scoring_goes_on_where_it_was_interrupted(suite: Suite) -> None:
    suite.command("--suite", "aime24")
    first, batches = suite.scores("aime24"), suite.batches()
    assert len(batches) == 2
    ledger = (suite.run / "ledger.jsonl").read_text()
    assert '"suite"' in ledger
    (suite.run / "suites/aime24.json").unlink()
    gone = sorted(batches)[1]
    gone.unlink()
    suite.command("--suite", "aime24")
    assert suite.batches() == batches
    assert suite.scores("aime24") == first


def test_single_benchmarks_and_suites_share_what_was_sampled(suite: Suite) -> None:
    for name in ("aime25", "hmmt25", "amobench", "openr1math", "math500"):
        write_jsonl(suite.data / f"{name}.jsonl", rows_of(name, 2))
    suite.command("--suite", "aime24")
    batches = suite.batches()
    output = suite.command("--suite", "math6")
    assert batches.items() <= suite.batches().items()
    found = suite.scores("math6")
    own = found["models"]["base"]
    averages = [one["avg"] for one in own["benchmarks"].values()]
    assert len(averages) == 6
    assert own["macro"]["avg"] == pytest.approx(sum(averages) / 6)
    assert own["benchmarks"]["aime24"] == suite.scores("aime24")["models"]["base"]["benchmarks"]["aime24"]
    assert "average" in output


def test_a_folder_is_scored_beside_the_runs_models(suite: Suite, tmp_path: Path) -> None:
    model, other = tmp_path / "other", load_model("tiny", load_recipe(suite.recipe).model)
    with torch.no_grad():
        next(other.parameters()).mul_(1.01)
    save_model(other, load_tokenizer("tiny"), model)
    suite.command("--suite", "aime24")
    suite.command("--suite", "aime24", "--model", model, "--name", "mine")
    found = suite.scores("aime24")
    assert {name: own["path"] for name, own in found["models"].items()} == {
        "base": "tiny",
        "mine": str(model),
    }
    error = suite.command("--suite", "aime24", "--model", "tiny", "--name", "mine", status=1)
    assert "`mine` was scored on aime24 in another way (what differs: model)" in error
    error = suite.command("--suite", "aime24", "--model", "tiny", "--name", "base", status=1)
    assert "cannot be stored under the name `base`" in error


def test_other_settings_or_questions_are_not_mixed(suite: Suite) -> None:
    suite.command("--suite", "aime24")
    before = suite.batches()
    error = suite.command("--suite", "aime24", "suite.temperature=0.1", status=1)
    assert "other questions or other sampling" in error
    write_jsonl(suite.data / "aime24.jsonl", aime_rows(load_recipe(suite.recipe))[:5])
    assert "other questions or other sampling" in suite.command("--suite", "aime24", status=1)
    (suite.run / "suites/aime24.json").unlink()
    error = suite.command("--suite", "aime24", status=1)
    assert "`base` was scored on aime24 in another way (what differs: questions)" in error
    assert suite.batches() == before


def test_32k_tokens_do_not_fit_a_small_model_and_nothing_is_sampled(suite: Suite) -> None:
    write_jsonl(suite.data / "aime25.jsonl", rows_of("aime25"))
    error = suite.command("--suite", "aime25", "suite.max_new_tokens=32768", status=1)
    assert "a response of up to 32768 do not fit the model's context" in error.replace("\n", " ")
    assert "benchmark aime25, question 1" in error
    assert "lower suite.max_new_tokens" in error
    assert suite.batches() == {}
    suite.command("--suite", "aime25")
    assert suite.batches(), "what failed before anything was sampled holds nothing fast"


def test_faults_are_told_before_anything_is_sampled(suite: Suite) -> None:
    assert "did you mean `paper8`?" in suite.command("--suite", "paper9", status=1)
    assert "no copy of aime25, hmmt25" in suite.command("--suite", "paper8", status=1)
    assert "an audit is of test questions" in suite.command("--suite", "aime24", "--audit", "3", status=1)
    assert "this goes with --suite" in suite.command(status=1)
    assert suite.batches() == {}


def test_the_recipe_may_name_the_folder_of_copies(suite: Suite, tmp_path: Path) -> None:
    arguments = ["evaluate", suite.recipe, "-o", suite.run, "--suite", "aime24", f"suite.data={suite.data}"]
    result = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert suite.scores("aime24")["benchmarks"]["aime24"]["source"] == str(suite.data / "aime24.jsonl")


def scripted(recipe: Recipe, bench: Bench) -> RunContext:
    """What a suite needs of a run, with an engine that answers by a script."""

    def make_engine(model: Any, roles: Roles) -> Any:
        return bench.engine

    context = SimpleNamespace(
        recipe=recipe,
        run=bench.run,
        ledger=bench.ledger,
        tokenizer=bench.tokenizer,
        sets=sets_of(recipe),
        grade=bench.grade,
        report=lambda text: None,
        progress=None,
        load=lambda path: load_model(path, recipe.model),
        make_engine=make_engine,
    )
    return cast("RunContext", context)


def rows_in_python(folder: Path) -> list[dict[str, Any]]:
    """Two problems of Codeforces that are asked in Python, so that no compiler is needed."""
    rows = [row | {"official_tests": row["official_tests"][:3]} for row in rows_of("codeforces", 12)]
    every = load_benchmark(BENCHMARKS["codeforces"], write_jsonl(folder / "codeforces.jsonl", rows))
    python = [question.id for question in every.questions if question.kind == "python"]
    return [row for row in rows if row["id"] in python[:2]]


@needs_sandbox
def test_programs_are_graded_in_the_sandbox_of_the_suite(tmp_path: Path) -> None:
    """The recipe's verifier is `math`, so the suite opens one for programs."""
    data = tmp_path / "benchmarks"
    first, second = rows_in_python(tmp_path / "every")
    write_jsonl(data / "codeforces.jsonl", [first, second])
    write_jsonl(data / "livecodebench.jsonl", rows_of("livecodebench", 2))

    def answer(prompt: str, asked: int) -> str:
        assert "before you write the program" in prompt
        is_right = "Variant 1" in prompt or first["description"] in prompt
        return block("n = int(input())\nprint(2 * n)" if is_right else "print(0)")

    settings = SMALL | {"code_timeout_seconds": 60.0, "max_tests": 3}
    recipe = load_recipe(micro_recipe(tmp_path, {"suite": settings}))
    bench = Bench(tmp_path / "run", answer)
    found = score_suite(scripted(recipe, bench), "code2", {"base": "tiny"}, data)
    assert bench.grade.texts == [], "the recipe's verifier is not asked"
    programs = found["models"]["base"]["benchmarks"]
    assert programs["livecodebench"]["per_question"] == {"abc1": [1, 1], "abc2": [0, 0]}
    assert programs["codeforces"]["per_question"] == {first["id"]: [1, 1], second["id"]: [0, 0]}
    assert programs["codeforces"]["verdicts"] == {"correct": 2, "wrong": 2}
    assert found["benchmarks"]["codeforces"]["expected"] is None


def test_the_papers_figures_stand_beside_those_of_the_same_model(tmp_path: Path) -> None:
    data = tmp_path / "benchmarks"
    write_jsonl(data / "aime24.jsonl", rows_of("aime24"))
    model = tmp_path / "Qwen3-4B-Instruct-2507"
    model.symlink_to(tiny.model_folder())
    recipe = load_recipe(micro_recipe(tmp_path, {"suite": SMALL, "model": {"path": str(model)}}))
    bench = Bench(tmp_path / "run", lambda prompt, asked: "right")
    found = score_suite(scripted(recipe, bench), "aime24", {"base": str(model), "sdzero": "tiny"}, data)
    assert [found["models"][name]["benchmarks"]["aime24"]["avg"] for name in ("base", "sdzero")] == [1.0, 1.0]
    assert found["paper"]["model"] == "Qwen3-4B-Instruct"
    table = suite_table(found)
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["paper"] == ["59.6%", "68.3%"]
    assert cells["avg@2"] == ["100.0% [100.0%, 100.0%]"] * 2
    assert any("table 1" in line for line in notes(found))


def test_each_kind_has_the_verifier_that_fits(tmp_path: Path) -> None:
    math = load_recipe(micro_recipe(tmp_path, {"suite": SMALL | {"code_timeout_seconds": 77.0}}))
    assert verifier_settings(math, "math") == math.verifier
    assert verifier_settings(math, "code").timeout_seconds == 77.0
    own = {"verifier": {"name": "code", "timeout_seconds": 55.0}}
    code = load_recipe(micro_recipe(tmp_path / "code", own))
    assert verifier_settings(code, "code") == code.verifier
    with pool_of(verifier_settings(code, "math")) as pool:
        pool.check_canaries()


def test_a_run_may_end_with_a_suite_and_asks_for_it_first(tmp_path: Path) -> None:
    named = SMALL | {"name": "aime24", "data": str(tmp_path / "benchmarks")}
    suite = Suite(tmp_path, suite=named)
    arguments = ["run", str(suite.recipe), "-o", str(suite.run), "rft.enabled=false", "evaluate.k=1"]
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert "no copy of aime24 is here" in refused.stderr
    assert not (suite.run / "collect").exists(), "nothing was sampled"
    write_jsonl(suite.data / "aime24.jsonl", aime_rows(load_recipe(suite.recipe)))
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert set(suite.scores("aime24")["models"]) == {"base", "srt", "sdzero"}
    assert "AIME24" in done.output.rpartition("results.json")[2], "the suite's table is the last"
