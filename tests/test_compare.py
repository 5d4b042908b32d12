"""The command `sdzero compare`, on the micro recipe: every method, one budget, resuming, bad input."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support import micro_recipe, read_jsonl, sdzero, without_seconds

METHODS = "base,sft,rft,grpo,grpo@tokens,sdft,negative,srt,sdzero"


def results_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text())
    return found


def test_every_method_has_its_row_and_its_difference(micro_compare: Path) -> None:
    results = results_of(micro_compare)
    assert list(results["methods"]) == METHODS.split(",")
    assert set(results["against"]) == set(METHODS.split(",")) - {"sdzero"}
    assert results["seeds"] == [3, 4]
    assert results["questions"] == 6
    for own in results["methods"].values():
        low, high = own["interval"]
        assert low <= own["mean"] <= high
        assert 0 <= own["pass_at_k"] <= 1
    for own in results["against"].values():
        assert own["p"] >= own["p_alone"] > 0


def test_all_methods_stay_within_one_budget(micro_compare: Path) -> None:
    methods = results_of(micro_compare)["methods"]
    budget = methods["sdzero"]["responses"]
    assert methods["rft"]["responses"] == budget, "spent to the last response"
    for name in ("grpo", "sdft", "negative"):
        assert budget - 16 < methods[name]["responses"] <= budget, "less than one batch is left"
    assert methods["sft"]["responses"] == methods["base"]["responses"] == 0
    tokens = methods["sdzero"]["sampled_tokens"]
    assert tokens <= methods["grpo@tokens"]["sampled_tokens"] <= tokens + 16 * 64


def test_costs_are_those_of_the_files(micro_compare: Path) -> None:
    methods = results_of(micro_compare)["methods"]
    for name, pattern in (("rft", "rft/responses/*.jsonl"), ("grpo", "grpo/rollouts/*.jsonl")):
        rows = [
            row
            for seed in (3, 4)
            for file in (micro_compare / f"seed-{seed}").glob(pattern)
            for row in read_jsonl(file)
        ]
        assert methods[name]["responses"] == len(rows) / 2
        assert methods[name]["sampled_tokens"] == sum(row["sampled_tokens"] for row in rows) / 2


def test_each_method_is_searched_at_as_many_rates_on_tuning_questions(micro_compare: Path) -> None:
    search = json.loads((micro_compare / "search.json").read_text())
    assert set(search["methods"]) == {"sft", "rft", "grpo", "sdft", "negative", "sdzero"}
    for own in search["methods"].values():
        assert [one["factor"] for one in own["tried"]] == [0.5, 1.0]
        best = max(own["tried"], key=lambda one: (one["avg"], -one["learning_rate"]))
        assert own["learning_rate"] == best["learning_rate"]
    questions = json.loads((micro_compare / "search" / "questions.json").read_text())
    scored = json.loads((micro_compare / "search/evaluate/rft-x1.json").read_text())["per_question"]
    assert set(scored) <= set(questions["tuning"])
    assert not set(scored) & set(questions["test"])
    assert search["cost"]["responses"] > 0


def test_the_rate_that_was_found_is_the_rate_that_is_trained_with(micro_compare: Path) -> None:
    search = json.loads((micro_compare / "search.json").read_text())["methods"]
    for name, folder in (("sdzero", "distill"), ("grpo", "grpo@tokens"), ("sdft", "sdft")):
        settings = json.loads((micro_compare / "seed-3" / folder / "settings.json").read_text())
        assert settings["learning_rate"] == search[name]["learning_rate"]


def test_a_second_call_trains_nothing_and_changes_nothing(micro_compare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(micro_compare, folder)
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    done = sdzero("compare", micro_recipe(tmp_path), "--methods", METHODS, "--seeds", "2", "-o", folder)
    assert done.returncode == 0, done.stderr
    assert before == {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    assert without_seconds(results_of(folder)) == without_seconds(results_of(micro_compare))
    assert "Holm-corrected" in " ".join(done.stdout.split())


def test_after_a_kill_between_methods_only_the_lost_one_is_trained_again(
    micro_compare: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(micro_compare, folder)
    # As if the process had died in the second seed after it trained the methods that come after `sft`.
    for name in ("sft/model", "evaluate/sft"):
        shutil.rmtree(folder / "seed-4" / name)
    for file in ("compare.json", "seed-4/stages/sft.json", "seed-4/evaluate/sft.json"):
        (folder / file).unlink()
    before = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    arguments = ("--methods", METHODS, "--seeds", "2", "-o", folder)
    done = sdzero("compare", micro_recipe(tmp_path), *arguments, timeout=900)
    assert done.returncode == 0, done.stderr
    after = {file: file.stat().st_mtime_ns for file in folder.rglob("*.safetensors")}
    again = folder / "seed-4/sft/model/model.safetensors"
    assert set(after) - set(before) == {again}
    assert {file: after[file] for file in before} == before
    first = micro_compare / "seed-4/sft/model/model.safetensors"
    assert again.read_bytes() == first.read_bytes()
    assert without_seconds(results_of(folder)) == without_seconds(results_of(micro_compare))


def test_a_method_may_be_left_out_later(micro_compare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fewer"
    shutil.copytree(micro_compare, folder)
    done = sdzero("compare", micro_recipe(tmp_path), "--methods", "rft,sdzero", "--seeds", "1", "-o", folder)
    assert done.returncode == 0, done.stderr
    results = results_of(folder)
    assert list(results["methods"]) == ["rft", "sdzero"]
    assert results["methods"]["rft"]["interval"] is None, "one seed shows no spread"
    alone = results["against"]["rft"]
    assert alone["p"] == alone["p_alone"], "nothing to correct for"


def test_seeds_of_another_recipe_are_refused(micro_compare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(micro_compare, folder)
    other = micro_recipe(tmp_path, {"srt": {"learning_rate": 1e-5}})
    done = sdzero("compare", other, "--methods", "rft,sdzero", "--seeds", "1", "-o", folder)
    assert done.returncode == 1
    assert "different recipe" in done.stderr
    assert "srt.learning_rate" in done.stderr


def test_a_baseline_trained_with_other_settings_is_refused(micro_compare: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(micro_compare, folder)
    other = micro_recipe(tmp_path, {"grpo": {"clip": 0.1}})
    done = sdzero("compare", other, "--methods", "grpo,sdzero", "--seeds", "1", "-o", folder)
    assert done.returncode == 1
    assert "trained with other settings" in done.stderr
    assert "clip" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "sdzero,grop"], "did you mean `grpo`"),
        (["--methods", "sdzero,grpo", "grpo=null"], "no section `grpo`"),
        (["--methods", "sdzero,rft", "compare.search_seed=3"], "one of the seeds"),
        (["--methods", "sdzero,rft", "data.tuning=0"], "there is none"),
        (["--methods", "sdzero,grpo", "budget.responses=8"], "budget.responses"),
    ],
)
def test_bad_input_is_told_in_a_sentence(arguments: list[str], message: str, tmp_path: Path) -> None:
    overrides = [one for one in arguments if "=" in one]
    options = [one for one in arguments if "=" not in one]
    done = sdzero(
        "compare", micro_recipe(tmp_path), *overrides, *options, "--seeds", "1", "-o", tmp_path / "c"
    )
    assert done.returncode == 1
    assert message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert "to do" in done.stderr


def test_solutions_that_the_data_does_not_have(tmp_path: Path) -> None:
    data = tmp_path / "sums.jsonl"
    rows = [{"question": f"{a}+{b}", "answer": str(a + b)} for a in range(11, 21) for b in range(11, 21)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = micro_recipe(
        tmp_path, {"data": {"source": "jsonl", "path": str(data)}, "sft": {"demonstrations": "solutions"}}
    )
    done = sdzero("compare", recipe, "--methods", "sft,sdzero", "--seeds", "1", "-o", tmp_path / "c")
    assert done.returncode == 1
    assert "have no worked solution" in done.stderr
    assert "data.fields.solution" in done.stderr
    assert not (tmp_path / "c" / "search" / "collect").exists(), "told before anything is sampled"
