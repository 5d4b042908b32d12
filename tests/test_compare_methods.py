"""One method of a comparison: its name, its budget, its model, and what becomes of it if it collapses."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from fake_stages import COLLECTED, DISTILLED, FakeStages, Play, fake_stages, play_baselines, play_scores
from sdzero.compare_methods import (
    Method,
    at_rate,
    chosen_settings,
    collapse_of,
    cost_of,
    model_of,
    parse_methods,
    train_guarded,
)
from sdzero.errors import CollapseError, UserError
from sdzero.method.training import PlainLog
from sdzero.recipe import Recipe
from sdzero.run_context import Budget

RFT = Method("rft", "rft")
GOOD = "rft/checkpoints/last-good/checkpoint-4"


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    play_baselines(monkeypatch)


@pytest.fixture
def collapsing() -> Play:
    return Play(collapses={"rft": CollapseError("training collapsed: the mean reward went from 1 to 0")})


def guarded(stages: FakeStages, method: Method = RFT, **settings: Any) -> str | None:
    own = method.settings(stages.recipe).model_copy(update=settings)
    return train_guarded(stages, method, method.stage, own, lambda: Budget("responses", 7))


def with_alarms(recipe: Recipe, **alarms: Any) -> Recipe:
    return recipe.model_copy(update={"alarms": recipe.alarms.model_copy(update=alarms)})


# ---- a collapse ----


def test_a_collapse_is_noted_once_and_not_tried_again(
    tmp_path: Path, micro_settings: Recipe, collapsing: Play
) -> None:
    lines: list[str] = []
    stages = fake_stages(tmp_path / "run", micro_settings, collapsing)
    stages.report = lines.append
    assert guarded(stages) == "training collapsed: the mean reward went from 1 to 0"
    note = stages.run.path("rft/collapse.json").read_bytes()
    again = fake_stages(tmp_path / "run", micro_settings, collapsing)
    assert guarded(again) == "training collapsed: the mean reward went from 1 to 0"
    assert collapsing.trained == ["rft"]
    assert again.run.path("rft/collapse.json").read_bytes() == note
    assert not again.run.is_done("rft")
    assert lines == ["rft collapsed and was stopped: training collapsed: the mean reward went from 1 to 0"]


def test_with_other_alarms_it_is_tried_again_and_the_note_goes(
    tmp_path: Path, micro_settings: Recipe, collapsing: Play
) -> None:
    guarded(fake_stages(tmp_path / "run", micro_settings, collapsing))
    collapsing.collapses.clear()
    stages = fake_stages(tmp_path / "run", with_alarms(micro_settings, enabled=False), collapsing)
    assert guarded(stages) is None
    assert collapsing.trained == ["rft", "rft"]
    assert collapse_of(stages, "rft") is None
    assert model_of(stages, RFT) == str(tmp_path / "run/rft/model")
    assert guarded(fake_stages(tmp_path / "run", micro_settings, collapsing)) is None, "it is trained"
    assert collapsing.trained == ["rft", "rft"]


def test_a_second_collapse_is_noted_with_its_own_alarms(
    tmp_path: Path, micro_settings: Recipe, collapsing: Play
) -> None:
    guarded(fake_stages(tmp_path / "run", micro_settings, collapsing))
    collapsing.collapses["rft"] = CollapseError("something else")
    other = with_alarms(micro_settings, window=7)
    assert guarded(fake_stages(tmp_path / "run", other, collapsing)) == "something else"
    stages = fake_stages(tmp_path / "run", other, collapsing)
    assert guarded(stages) == "something else"
    assert collapsing.trained == ["rft", "rft"]
    note = collapse_of(stages, "rft")
    assert note is not None
    assert note["alarms"]["window"] == 7


def test_scores_from_before_do_not_outlive_another_training(
    tmp_path: Path, micro_settings: Recipe, collapsing: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_scores(monkeypatch, collapsing)
    first = fake_stages(tmp_path / "run", micro_settings, collapsing)
    guarded(first)
    first.evaluate("rft", model_of(first, RFT))
    assert collapsing.scored["rft"][0] == str(first.run.path(GOOD))
    responses = first.run.path("evaluate/rft/responses/batch-00000.jsonl")
    first.run.write_jsonl("evaluate/rft/responses/batch-00000.jsonl", [{}])
    collapsing.collapses.clear()
    stages = fake_stages(tmp_path / "run", with_alarms(micro_settings, enabled=False), collapsing)
    guarded(stages)
    assert not responses.exists(), "they are of the checkpoint that was kept"
    stages.evaluate("rft", model_of(stages, RFT))
    assert collapsing.scored["rft"][0] == str(stages.run.path("rft/model"))


def test_other_settings_are_refused_whether_it_collapsed_or_not(
    tmp_path: Path, micro_settings: Recipe, collapsing: Play
) -> None:
    guarded(fake_stages(tmp_path / "run", micro_settings, collapsing))
    with pytest.raises(UserError, match=r"trained with other settings.*weight_decay"):
        guarded(fake_stages(tmp_path / "run", micro_settings, collapsing), weight_decay=0.25)


def test_other_errors_are_not_taken_for_a_collapse(tmp_path: Path, micro_settings: Recipe) -> None:
    def without_budget() -> Budget:
        raise UserError("no budget")

    stages = fake_stages(tmp_path / "run", micro_settings)
    with pytest.raises(UserError, match="no budget"):
        train_guarded(stages, RFT, "rft", micro_settings.rft, without_budget)
    assert collapse_of(stages, "rft") is None


def test_sdzero_itself_is_guarded(tmp_path: Path, micro_settings: Recipe) -> None:
    play = Play(collapses={"distill": CollapseError("phase 2 collapsed")})
    stages = fake_stages(tmp_path / "run", micro_settings, play)
    assert guarded(stages, Method("sdzero", "sdzero")) == "phase 2 collapsed"
    assert play.settings["distill"] == micro_settings.distill


def test_a_loss_that_is_no_number_is_a_collapse(tmp_path: Path, micro_settings: Recipe) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path / "trainer"), report_to=[], use_cpu=True)
    with pytest.raises(CollapseError, match="loss is nan at step 3") as raised:
        PlainLog(None).on_log(arguments, TrainerState(global_step=3), TrainerControl(), {"loss": math.nan})
    play = Play(collapses={"rft": raised.value})
    stages = fake_stages(tmp_path / "run", micro_settings, play)
    assert guarded(stages) == "training broke down: loss is nan at step 3"


# ---- the model ----


def test_what_collapsed_is_the_last_good_checkpoint_wherever_the_run_is_moved(
    tmp_path: Path, micro_settings: Recipe, collapsing: Play
) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings, collapsing)
    guarded(stages)
    assert model_of(stages, RFT) == str(tmp_path / "run" / GOOD)
    note = json.loads((tmp_path / "run/rft/collapse.json").read_text())
    assert note["kept"] == GOOD, "relative to the run"
    (tmp_path / "run").rename(tmp_path / "moved")
    moved = fake_stages(tmp_path / "moved", micro_settings, collapsing)
    assert model_of(moved, RFT) == str(tmp_path / "moved" / GOOD)
    assert Path(model_of(moved, RFT)).is_dir()


def test_without_a_good_checkpoint_it_is_the_model_that_training_began_with(
    tmp_path: Path, micro_settings: Recipe, collapsing: Play
) -> None:
    collapsing.checkpoint_kept = False
    stages = fake_stages(tmp_path / "run", micro_settings, collapsing)
    guarded(stages)
    assert model_of(stages, RFT) == "tiny"


def test_where_each_methods_model_is(tmp_path: Path, micro_settings: Recipe) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    found = {m.name: model_of(stages, m) for m in parse_methods(["base", "srt", "grpo@tokens", "sdzero"])}
    run = tmp_path / "run"
    assert found == {
        "base": "tiny",
        "srt": str(run / "srt/round-1/model"),
        "grpo@tokens": str(run / "grpo@tokens/model"),
        "sdzero": str(run / "distill/model"),
    }


# ---- the budget ----


def test_a_baseline_gets_what_sdzero_spent(tmp_path: Path, micro_settings: Recipe) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    with pytest.raises(UserError, match="it has not run here"):
        stages.budget()
    stages.collect(1)
    stages.distill()
    assert stages.budget() == Budget("responses", COLLECTED + DISTILLED)
    assert stages.budget("tokens") == Budget("tokens", 10 * (COLLECTED + DISTILLED))
    method = Method("rft@tokens", "rft", "tokens")
    train_guarded(stages, method, method.name, micro_settings.rft, partial(stages.budget, method.match))
    assert stages.play.budgets["rft@tokens"] == Budget("tokens", 10 * (COLLECTED + DISTILLED))


def test_what_a_checkpoint_of_srt_took_must_be_given(tmp_path: Path, micro_settings: Recipe) -> None:
    srt = micro_settings.srt.model_copy(update={"checkpoint": "somewhere"})
    recipe = micro_settings.model_copy(update={"srt": srt})
    stages = fake_stages(tmp_path / "run", recipe)
    stages.distill(start="somewhere")
    with pytest.raises(UserError, match=r"what srt\.checkpoint took is not known") as raised:
        stages.budget()
    assert (raised.value.where, raised.value.todo) == ("srt.checkpoint", "set budget.responses")
    stages.recipe = recipe.model_copy(update={"budget": recipe.budget.model_copy(update={"responses": 123})})
    assert stages.budget() == Budget("responses", 123)
    with pytest.raises(UserError) as raised:
        stages.budget("tokens")
    assert raised.value.todo == "set budget.tokens"


def test_costs_are_summed_over_a_methods_stages() -> None:
    spent = {
        "collect": {"responses": 30, "sampled_tokens": 300, "trained_tokens": 0, "teacher_tokens": 0},
        "srt": {"responses": 0, "sampled_tokens": 0, "trained_tokens": 50, "teacher_tokens": 0},
        "distill": {"responses": 10, "sampled_tokens": 100, "trained_tokens": 90, "teacher_tokens": 250},
        "rft": {"responses": 40, "sampled_tokens": 400, "trained_tokens": 20, "teacher_tokens": 0},
    }
    spent = {
        name: own | {"seconds": 2.0, "device_seconds": 3.0, "joules": 4.0} for name, own in spent.items()
    }
    sdzero = cost_of(Method("sdzero", "sdzero").stages, spent)
    assert sdzero == {
        "responses": 40,
        "sampled_tokens": 400,
        "trained_tokens": 140,
        "teacher_tokens": 250,
        "seconds": 6.0,
        "device_seconds": 9.0,
        "joules": 12.0,
    }
    assert cost_of(Method("srt", "srt").stages, spent)["responses"] == 30
    assert cost_of(RFT.stages, spent)["responses"] == 40
    assert set(cost_of(Method("base", "base").stages, spent).values()) == {0}
    spent["srt"] |= {"joules": None}
    assert cost_of(Method("sdzero", "sdzero").stages, spent)["joules"] is None, "half a sum is none"


# ---- names and rates ----


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sdzero", "rtf"], "no method `rtf`"),
        (["sdzero", "rft@time"], "`rft@time` is no method with a budget"),
        (["sdzero", "srt@tokens"], "`srt@tokens` is no method with a budget"),
        (["sdzero@tokens"], "`sdzero@tokens` is no method with a budget"),
        (["sdzero", "rft", "rft"], "`rft` stands there twice"),
        (["rft"], "`sdzero` is missing"),
    ],
)
def test_names_that_are_no_methods(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_methods(names)


def test_a_rate_that_was_found_takes_the_place_of_the_recipes(tmp_path: Path, micro_settings: Recipe) -> None:
    assert chosen_settings(micro_settings, tmp_path, "rft") == micro_settings.rft
    (tmp_path / "search.json").write_text('{"methods": {"rft": {"learning_rate": 0.125}}}')
    found = chosen_settings(micro_settings, tmp_path, "rft")
    assert found == at_rate(micro_settings.rft, 0.125)
    assert found != micro_settings.rft
    assert chosen_settings(micro_settings, tmp_path, "sdzero") == micro_settings.distill
