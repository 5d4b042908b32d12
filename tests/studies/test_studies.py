"""The studies, on the runs of a comparison of the micro recipe: what they train, what they say."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fake_stages import FakeStages, fake_stages
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.models import load_model, load_tokenizer
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import QuestionSets
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.studies.phases import sync_rows
from sdzero.studies.run import STUDIES, chosen_of, run_seed, run_study, study_named, study_results
from sdzero.studies.study import Chosen
from support import micro_recipe, read_jsonl, sdzero

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


def test_further_rounds_are_at_half_the_rate_and_cost_what_they_sample(run: Runner, folder: Path) -> None:
    rows = run("sync")["rows"]
    assert rows["sync-3"]["responses"] == rows["sync-2"]["responses"] + 24
    rate = settings_of(folder, "distill")["learning_rate"]
    for name in ("sync-2", "sync-3", "same-teacher-2"):
        assert settings_of(folder, name)["learning_rate"] == rate / 2


def test_a_round_begins_where_the_last_ended_and_only_the_control_keeps_its_teacher(
    tmp_path: Path, micro_settings: Recipe
) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    stages.distill()
    sync_rows(stages, Chosen(micro_settings.distill, micro_settings.rft))
    model = {name: str(stages.run.path(f"{name}/model")) for name in ("srt/round-1", "distill", "sync-2")}
    assert stages.play.starts == {
        "distill": None,
        "sync-2": model["distill"],
        "sync-3": model["sync-2"],
        "same-teacher-2": model["distill"],
    }
    assert stages.play.teachers == {
        "distill": None,
        "sync-2": None,
        "sync-3": None,
        "same-teacher-2": model["srt/round-1"],
    }


def test_a_study_goes_on_in_a_folder_that_was_moved(tmp_path: Path, micro_settings: Recipe) -> None:
    chosen = Chosen(micro_settings.distill, micro_settings.rft)
    sync_rows(fake_stages(tmp_path / "run", micro_settings), chosen)
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = fake_stages(tmp_path / "moved", micro_settings)
    rows = sync_rows(moved, chosen)
    assert moved.play.trained == []
    assert rows["same-teacher-2"].model == str(tmp_path / "moved/same-teacher-2/model")


def test_unfiltered_traces_are_more_than_the_verified(run: Runner, folder: Path) -> None:
    run("filter")

    def traces(name: str) -> int:
        return len((folder / "seed-3" / name / "round-1/traces.jsonl").read_text().splitlines())

    assert traces("unfiltered-collect") > traces("collect")


def sampled_ids(folder: Path, *patterns: str) -> list[str]:
    """The questions of the responses that are kept in a seed's files."""
    files = [file for pattern in patterns for file in sorted((folder / "seed-3").glob(pattern))]
    assert files
    return [row["question"] for file in files for row in read_jsonl(file)]


def training_ids(folder: Path) -> list[str]:
    sets = json.loads((folder / "seed-3/questions.json").read_text())
    return [*sets["n1"], *sets["n2"]]


def test_shares_of_phase_1_use_every_question_once(run: Runner, folder: Path) -> None:
    rows = run("allocation")["rows"]
    # 40, 50 and 60 of 100 of the 48 questions, rounded down.
    for share, cut in ((40, 19), (50, 24), (60, 28)):
        first = sampled_ids(folder, f"n1-{share}-collect/round-1/initial/*.jsonl")
        second = sampled_ids(folder, f"n1-{share}-distill/rollouts/*.jsonl")
        assert (len(first), len(second)) == (cut, 48 - cut)
        assert not set(first) & set(second)
        assert sorted(first + second) == sorted(training_ids(folder))
        revised = sampled_ids(folder, f"n1-{share}-collect/round-1/revised/*.jsonl")
        assert set(revised) <= set(first)
        assert rows[f"n1-{share}"]["responses"] == 48 + len(revised)


@pytest.fixture(scope="module")
def kinds(folder: Path) -> dict[str, str]:
    """The kind of every question, by id."""
    questions = load_questions(load_recipe(folder / "seed-3/recipe.yaml").data)
    return {question.id: question.kind for question in questions}


def test_forgetting_trains_on_every_other_kind_and_scores_the_rest_apart(
    run: Runner, folder: Path, kinds: dict[str, str]
) -> None:
    results = run("forgetting")
    known = sorted({kinds[question] for question in training_ids(folder)})
    taught = {kind for number, kind in enumerate(known) if number % 2 == 0}
    assert 0 < len(taught) < len(known)
    for pattern in (
        "forgetting-collect/round-1/initial/*.jsonl",
        "forgetting-collect/round-1/revised/*.jsonl",
        "forgetting-distill/rollouts/*.jsonl",
        "forgetting-rft/responses/*.jsonl",
    ):
        assert {kinds[question] for question in sampled_ids(folder, pattern)} <= taught, pattern
    trained = sampled_ids(folder, "forgetting-collect/round-1/initial/*", "forgetting-distill/rollouts/*")
    assert sorted(trained) == sorted(q for q in training_ids(folder) if kinds[q] in taught)
    for name in ("base", "rft", "srt", "sdzero"):
        for word in ("other", "taught"):
            scores = json.loads((folder / f"seed-3/evaluate/forgetting-{name}-{word}.json").read_text())
            assert {kinds[question] in taught for question in scores["per_question"]} == {word == "taught"}
    others, same = results["rows"]["base-other"]["questions"], results["rows"]["base-taught"]["questions"]
    assert others + same == 6
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


def dense_divergences(
    model: Any, roles: Roles, prompt: list[int], ids: list[int], reward: int
) -> list[float]:
    """Reverse KL from whole distributions, the model on x + y against itself on x + y + P_r + y."""
    rows = []
    for context in (prompt, roles.reviser_prompt(prompt, ids, reward)):
        with torch.no_grad():
            logits_TV = model(torch.tensor([[*context, *ids]])).logits[0].double()
        # The logits at a token predict the next one.
        rows.append(logits_TV[len(context) - 1 : -1].log_softmax(-1))
    student_TV, teacher_TV = rows
    return [float(one) for one in (student_TV.exp() * (student_TV - teacher_TV)).sum(-1)]


def test_localization_is_that_of_whole_distributions(run: Runner, folder: Path) -> None:
    """The tuning set has 4 questions with one response each, so means over questions are plain means."""
    measured = run("localization")["measured"]
    seed = folder / "seed-3"
    recipe = load_recipe(seed / "recipe.yaml")
    questions = {question.id: question for question in load_questions(recipe.data)}
    tokenizer = load_tokenizer("tiny")
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    model = load_model(str(seed / "srt/round-1/model"), recipe.model).eval()
    rows = [row for file in (seed / "localization/responses").glob("*.jsonl") for row in read_jsonl(file)]
    tuning = json.loads((seed / "questions.json").read_text())["tuning"]
    assert sorted(row["question"] for row in rows) == sorted(tuning)
    tops: dict[int, list[float]] = {0: [], 1: []}
    means: dict[int, list[float]] = {0: [], 1: []}
    exact: list[bool] = []
    for row in rows:
        question, ids, reward = questions[row["question"]], row["token_ids"], int(row["outcome"] == "correct")
        own = dense_divergences(model, roles, list(roles.generator_prompt(question)), ids, reward)
        fifth = -(-len(own) // 5)
        tops[reward].append(sum(sorted(own)[-fifth:]) / sum(own))
        means[reward].append(sum(own) / len(own))
        if not reward:
            right = tokenizer.encode(question.solution, add_special_tokens=False)
            agreeing = sum(
                1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ids, right, strict=False))
            )
            exact.append(own.index(max(own)) == agreeing)
    assert tops[0], "a response is wrong, or there is nothing to compare"
    for reward in (0, 1):
        if tops[reward]:
            top, mean = measured[f"top_share_r{reward}"]["mean"], measured[f"divergence_r{reward}"]["mean"]
            assert top == pytest.approx(sum(tops[reward]) / len(tops[reward]), rel=1e-3)
            assert mean == pytest.approx(sum(means[reward]) / len(means[reward]), rel=1e-3)
    assert measured["exact"]["mean"] == pytest.approx(sum(exact) / len(exact))


# ---- what cannot be studied ----


@pytest.mark.parametrize("name", ["loss", "allocation", "filter", "forgetting"])
def test_a_checkpoint_of_srt_cannot_stand_for_trainings_of_it(
    name: str, tmp_path: Path, micro_settings: Recipe
) -> None:
    srt = micro_settings.srt.model_copy(update={"checkpoint": "somewhere"})
    recipe = micro_settings.model_copy(update={"srt": srt})
    with pytest.raises(UserError, match=f"the study `{name}` collects and trains SRT") as raised:
        run_study(recipe, tmp_path / "c", STUDIES[name], 1, lambda text: None, lambda *counts: None)
    assert raised.value.where == "srt.checkpoint"
    assert not (tmp_path / "c").exists()


def refused(name: str, stages: FakeStages) -> UserError:
    """What the study says to these stages, before it trains or samples anything."""
    with pytest.raises(UserError) as raised:
        run_seed(stages, STUDIES[name], Chosen(stages.recipe.distill, stages.recipe.rft))
    assert stages.play.trained == []
    assert stages.ledger.by_stage() == {}
    return raised.value


def test_losses_in_two_stages_have_no_weights(tmp_path: Path, micro_settings: Recipe) -> None:
    srt = micro_settings.srt.model_copy(update={"schedule_of_losses": "two_stage"})
    stages = fake_stages(tmp_path / "run", micro_settings.model_copy(update={"srt": srt}))
    assert refused("loss", stages).where == "srt.schedule_of_losses"


def test_without_a_tuning_set_nothing_is_localized(tmp_path: Path, micro_settings: Recipe) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    stages.sets.tuning.clear()
    assert refused("localization", stages).where == "data.tuning"


@pytest.mark.parametrize(
    ("trained", "scored", "is_refused"),
    [
        (("", ""), ("", ""), True),
        (("a", "a"), ("a", "b"), False),
        # Of a, b and c the kinds a and c are taught.
        (("a", "b", "c"), ("a", "c"), True),
        (("a", "b", "c"), ("b",), True),
        (("a", "b", "c"), ("b", "c"), False),
    ],
)
def test_forgetting_needs_kinds_on_both_sides(
    trained: tuple[str, ...],
    scored: tuple[str, ...],
    is_refused: bool,
    tmp_path: Path,
    micro_settings: Recipe,
) -> None:
    def questions(kinds: tuple[str, ...]) -> list[Question]:
        return [Question(f"q{number}", "x", "1", kind) for number, kind in enumerate(kinds)]

    stages = fake_stages(tmp_path / "run", micro_settings)
    stages.sets = QuestionSets(questions(trained[:1]), questions(trained[1:]), [], questions(scored))
    if is_refused:
        assert refused("forgetting", stages).where == "data.fields.kind"
    else:
        STUDIES["forgetting"].check(stages)


# ---- rates, names, the command ----


def test_phase_2_uses_the_rate_that_the_comparison_found(tmp_path: Path, micro_settings: Any) -> None:
    found = {"methods": {"sdzero": {"learning_rate": 7e-5}, "rft": {"learning_rate": 9e-5}}}
    (tmp_path / "search.json").write_text(json.dumps(found))
    chosen = chosen_of(micro_settings, tmp_path)
    assert (chosen.distill.learning_rate, chosen.baselines["rft"].learning_rate) == (7e-5, 9e-5)
    elsewhere = chosen_of(micro_settings, tmp_path / "nowhere")
    assert (elsewhere.distill, elsewhere.baselines["rft"]) == (micro_settings.distill, micro_settings.rft)


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
