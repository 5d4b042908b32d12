"""The study of rollouts one step ahead: what it trains, on stages that play."""

from pathlib import Path

import pytest

from fake_stages import COLLECTED, DISTILLED, Play, fake_stages, play_scores
from sdzero.recipe import Recipe
from sdzero.recipe_distill import DistillSettings
from sdzero.studies.recommended import PAPER
from sdzero.studies.run import STUDIES, run_seed
from sdzero.studies.study import Chosen


def test_both_ways_differ_in_nothing_else(
    tmp_path: Path, micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, play = STUDIES["ahead"], Play()
    play_scores(monkeypatch, play)
    stages = fake_stages(tmp_path / "run", micro_settings, play)
    found = run_seed(stages, study, Chosen(micro_settings.distill, {}))
    assert list(found["rows"]) == ["srt", "on-policy", "ahead"]
    assert "distill" not in play.trained
    plain, ahead = play.settings["on-policy"], play.settings["ahead"]
    assert {key for key, value in plain if getattr(ahead, key) != value} == {"rollouts_ahead"}
    assert (plain.rollouts_ahead, ahead.rollouts_ahead) == (0, 1)
    for settings in (plain, ahead):
        assert {key: getattr(settings, key) for key in PAPER} | {"rollouts_ahead": 0} == dict(PAPER)
        assert settings.learning_rate == micro_settings.distill.learning_rate
        DistillSettings.model_validate(settings.model_dump())
    assert play.starts["on-policy"] == play.starts["ahead"]
    assert found["rows"]["ahead"]["cost"] == found["rows"]["on-policy"]["cost"]
    assert found["rows"]["ahead"]["cost"]["responses"] == COLLECTED + DISTILLED
