"""The studies, on the runs of a comparison of the micro recipe: what they train, what they say."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.recipe_io import load_recipe
from sdzero.studies.run import STUDIES, chosen_of, run_study, study_named, study_results
from support import micro_recipe, sdzero

Runner = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(micro_compare: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    own = tmp_path_factory.mktemp("studies") / "compare"
    shutil.copytree(micro_compare, own)
    return own


@pytest.fixture(scope="module")
def run(folder: Path) -> Runner:
    recipe = load_recipe(micro_recipe(folder.parent))

    def run_one(name: str) -> dict[str, Any]:
        return run_study(recipe, folder, study_named(name), 1, lambda text: None, lambda *counts: None)

    return run_one


@pytest.mark.parametrize("name", list(STUDIES))
def test_every_study_writes_its_file(name: str, run: Runner, folder: Path) -> None:
    results = run(name)
    assert json.loads((folder / f"study-{name}.json").read_text()) == json.loads(json.dumps(results))
    assert results["reference"] in results["rows"]
    assert len(results["rows"]) > 2
    for own in results["rows"].values():
        assert 0 <= own["mean"] <= 1
        assert own["questions"] > 0
    assert set(results["against_reference"]) <= set(results["rows"]) - {results["reference"]}


def settings_of(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "seed-3" / stage / "settings.json").read_text())
    return found


def test_one_thing_is_changed_in_each_training(run: Runner, folder: Path) -> None:
    for name in ("loss", "divergence", "phrase"):
        run(name)
    changed = {
        "loss-generation/round-1": ("srt/round-1", {"revision_weight"}),
        "loss-revision/round-1": ("srt/round-1", {"generation_weight"}),
        "divergence-jsd": ("distill", {"divergence"}),
        "phrase-flipped": ("distill", {"phrase_for_reward"}),
    }
    for stage, (original, keys) in changed.items():
        own, before = settings_of(folder, stage), settings_of(folder, original)
        assert {key for key in own if own[key] != before[key]} == keys


def test_a_round_begins_where_the_last_ended_and_only_the_control_keeps_its_teacher(
    run: Runner, folder: Path
) -> None:
    rows = run("sync")["rows"]
    assert rows["sync-3"]["responses"] == rows["sync-2"]["responses"] + 24
    rate = settings_of(folder, "distill")["learning_rate"]
    for name in ("sync-2", "sync-3", "same-teacher-2"):
        own = settings_of(folder, name)
        assert own["learning_rate"] == rate / 2
        srt = str(folder / "seed-3/srt/round-1/model")
        assert own["teacher"] == (srt if name == "same-teacher-2" else None)


def test_unfiltered_traces_are_more_than_the_verified(run: Runner, folder: Path) -> None:
    run("filter")

    def traces(name: str) -> int:
        return len((folder / "seed-3" / name / "round-1/traces.jsonl").read_text().splitlines())

    assert traces("unfiltered-collect") > traces("collect")


def test_shares_of_phase_1_use_every_question_once(run: Runner, folder: Path) -> None:
    results = run("allocation")
    sampled = results["rows"]["n1-50"]["responses"]
    # 24 of 48 questions, one initial response and at most two revisions each; and 24 of phase 2.
    assert 24 + 24 < sampled <= 24 * 3 + 24


def test_forgetting_scores_only_kinds_that_were_left_out(run: Runner, folder: Path) -> None:
    results = run("forgetting")
    others, taught = results["rows"]["base-other"]["questions"], results["rows"]["base-taught"]["questions"]
    assert others + taught == 6
    assert set(results["against_reference"]) == {"rft-other", "srt-other", "sdzero-other"}, (
        "rows on other questions than the reference's have no difference"
    )


def test_generate_then_revise_has_the_baselines_of_the_comparison(run: Runner) -> None:
    rows = run("revise")["rows"]
    assert {"base", "sft", "rft", "grpo", "sdft", "srt", "sdzero"} <= set(rows)
    assert set(rows["rft"]["revision"]) >= {"first", "revised", "correction_rate", "regression_rate"}


def test_localization_compares_the_peak_with_chance(run: Runner) -> None:
    measured = run("localization")["measured"]
    assert 0 < measured["flat_share_r0"]["mean"] <= measured["top_share_r0"]["mean"] <= 1
    assert 0 < measured["near_by_chance"]["mean"] < 1


def test_phase_2_uses_the_rate_that_the_comparison_found(tmp_path: Path, micro_settings: Any) -> None:
    found = {"methods": {"sdzero": {"learning_rate": 7e-5}, "rft": {"learning_rate": 9e-5}}}
    (tmp_path / "search.json").write_text(json.dumps(found))
    chosen = chosen_of(micro_settings, tmp_path)
    assert (chosen.distill.learning_rate, chosen.rft.learning_rate) == (7e-5, 9e-5)
    elsewhere = chosen_of(micro_settings, tmp_path / "nowhere")
    assert (elsewhere.distill, elsewhere.rft) == (micro_settings.distill, micro_settings.rft)


def test_a_study_waits_for_the_search_of_a_comparison(tmp_path: Path, micro_settings: Any) -> None:
    (tmp_path / "search").mkdir()
    with pytest.raises(UserError, match="has not finished its search"):
        chosen_of(micro_settings, tmp_path)


def test_an_unknown_study_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean `divergence`"):
        study_named("divergences")


def test_the_command_lists_the_studies_and_asks_for_a_recipe() -> None:
    listed = sdzero("study", "list")
    assert listed.returncode == 0
    assert all(f"{name}: " in listed.stdout for name in STUDIES)
    without = sdzero("study", "loss")
    assert without.returncode == 1
    assert "needs a recipe" in without.stderr


def test_differences_are_taken_from_the_reference(micro_settings: Any) -> None:
    def one(value: int) -> dict[str, Any]:
        evaluation = {"avg": value, "pass_at_k": value, "mean_tokens": 5.0, "questions": 3}
        scores = {
            "evaluation": evaluation,
            "per_question": {str(q): [value] for q in range(3)},
            "revision": {"first": 0.0},
        }
        cost = dict.fromkeys(
            ("responses", "sampled_tokens", "trained_tokens", "teacher_tokens", "seconds"), 1
        )
        return {"label": "x", "scores": scores, "cost": cost}

    found = [{"rows": {"srt": one(1), "other": one(0)}, "measured": {"a": 2.0, "nothing": None}}]
    results = study_results(micro_settings, STUDIES["loss"], [0], micro_settings.distill, found)
    assert results["against_reference"]["other"]["difference"] == -1.0
    assert results["measured"] == {"a": {"label": "a", "mean": 2.0, "interval": None, "per_seed": [2.0]}}
