"""What the studies of the options and of the recommended settings train, on stages that play."""

from pathlib import Path

import pytest

from fake_stages import COLLECTED, DISTILLED, Play, fake_stages, play_baselines, play_scores
from sdzero.method.distill_config import SAME_NAME
from sdzero.recipe import Recipe
from sdzero.recipe_distill import DistillSettings
from sdzero.studies.options import OPTIONS, option_rows
from sdzero.studies.recommended import PAPER, RECOMMENDED, VARIANTS, recommended_rows, search_rates
from sdzero.studies.run import STUDIES, run_seed, run_study
from sdzero.studies.study import Chosen


def test_each_option_changes_its_own_keys_and_no_other(tmp_path: Path, micro_settings: Recipe) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    plain = micro_settings.distill.model_copy(update={"sync": "never", "sync_every": None})
    rows = option_rows(stages, Chosen(plain, {}))
    trained = {
        name.removeprefix("option-"): own
        for name, own in stages.play.settings.items()
        if name.startswith("option-")
    }
    assert stages.play.settings["twice-distill"] == plain
    assert set(trained) == {*OPTIONS, "sync-half", "plateau"}
    for name, settings in trained.items():
        differing = {key for key, value in plain if getattr(settings, key) != value}
        expected = set(OPTIONS[name][1]) if name in OPTIONS else {"sync", *differing}
        assert differing == expected or differing == expected - {"clip_gradient"}, name
        # What the study trains, a recipe may say.
        DistillSettings.model_validate(settings.model_dump())
    assert (trained["sync-half"].sync, trained["sync-half"].sync_every) == ("steps", 1)
    assert (trained["plateau"].sync, trained["plateau"].evaluate_every) == ("plateau", 1)
    assert set(rows) == {"srt", "sdzero", "twice", *(f"option-{name}" for name in trained)}
    assert rows["twice"].stages == ("twice-collect", "twice-srt", "twice-distill")


def test_the_papers_settings_are_what_a_recipe_has_that_says_nothing() -> None:
    for key, value in PAPER.items():
        assert DistillSettings.model_fields[key].default == value, key
    # Every setting of the loss, of the teacher and of what is asked is among them.
    elsewhere = {"temperature", "top_p", "max_new_tokens", "chunk_tokens", "normalize", "phrase_for_reward"}
    elsewhere |= {"rehearsal_batch_size", "max_context", "overlong", "false_start_markers"}
    elsewhere |= {"divergence_backend", "micro_batch_tokens"}  # how it is computed, not what
    assert set(SAME_NAME) - elsewhere - set(PAPER) == set()
    assert set(RECOMMENDED) == set(PAPER)
    assert RECOMMENDED != PAPER


def test_rates_are_searched_for_each_variant_on_the_tuning_set(
    tmp_path: Path, micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def fake_search(recipe: Recipe, folder: Path, methods: list, *_: object) -> dict:  # type: ignore[type-arg]
        opened.append((folder.name, recipe.distill, [method.name for method in methods]))
        rate = 1e-4 * len(opened)
        return {"methods": {method.name: {"learning_rate": rate} for method in methods}}

    monkeypatch.setattr("sdzero.studies.recommended.search", fake_search)
    rates = search_rates(micro_settings, tmp_path, print, lambda *counts: None)
    assert rates == {"paper": 1e-4, "recommended": 2e-4, "grpo": 2e-4}
    assert [(name, methods) for name, _, methods in opened] == [
        ("search-paper", ["sdzero"]),
        ("search-recommended", ["sdzero", "grpo"]),
    ]
    for (_, settings, _), values in zip(opened, (PAPER, RECOMMENDED), strict=True):
        assert {key: getattr(settings, key) for key in values} == dict(values)
        assert settings.batch_size == micro_settings.distill.batch_size


def test_variants_have_their_rates_and_grpo_the_tokens_of_the_recommended(
    tmp_path: Path, micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = Play()
    play_baselines(monkeypatch)
    play_scores(monkeypatch, play)
    stages = fake_stages(tmp_path / "run", micro_settings, play)
    rates = {"paper": 1e-4, "recommended": 2e-4, "grpo": 3e-4}
    stages.phase_1()
    rows = recommended_rows(stages, Chosen(micro_settings.distill, {}, rates))
    assert play.trained == ["paper", "recommended", "grpo-tokens"]
    assert {name: own.learning_rate for name, own in play.settings.items()} == {
        "paper": 1e-4,
        "recommended": 2e-4,
        "grpo-tokens": 3e-4,
    }
    assert play.budgets["grpo-tokens"].match == "tokens"
    assert play.budgets["grpo-tokens"].amount == 10 * (COLLECTED + DISTILLED)
    assert set(rows) == {"base", "srt", "grpo-tokens", *VARIANTS}


def test_the_seeds_are_fresh_and_nothing_is_trained_with_the_recipes_own_settings(
    tmp_path: Path, micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = STUDIES["recommended"]
    seeds = []

    class OpenedError(Exception):
        pass

    def fake_open(recipe: Recipe, *_: object) -> None:
        seeds.append(recipe.seed)
        raise OpenedError

    monkeypatch.setattr("sdzero.studies.run.open_run", fake_open)
    monkeypatch.setattr(
        "sdzero.studies.recommended.search", lambda *_: {"methods": {"sdzero": {"learning_rate": 1.0}}}
    )
    with pytest.raises(OpenedError):
        run_study(micro_settings, tmp_path, study, 5, print, lambda *counts: None)
    assert seeds == [micro_settings.seed + 100]
    assert micro_settings.compare.search_seed not in range(seeds[0], seeds[0] + 5)
    play_baselines(monkeypatch)
    play = Play()
    play_scores(monkeypatch, play)
    stages = fake_stages(tmp_path / "run", micro_settings, play)
    rates = {"paper": 1e-4, "recommended": 2e-4, "grpo": 3e-4}
    run_seed(stages, study, Chosen(micro_settings.distill, {}, rates))
    assert "distill" not in play.trained
