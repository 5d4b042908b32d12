"""The study of models that search: what it counts, and what it trains."""

from pathlib import Path
from typing import Any

import pytest

from fake_stages import fake_stages
from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.recipe_distill import FALSE_STARTS
from sdzero.studies.study import Chosen
from sdzero.studies.thinking import LABELS, RESTRICTED, check_all, searching, thinking_rows, without_phrases


def test_false_starts_are_counted_by_hand() -> None:
    texts = [
        "5:35+12=47 wait 6:42+12=54\\boxed{6}",
        "5: wait 4: wait 3:\\boxed{3}",
        "\\boxed{4}",
        "\\boxed{5}",
    ]
    found = searching(texts, [1, 0, 1, 1], FALSE_STARTS)
    assert found == {"false_starts": 3 / 4, "right_with": 1 / 3}
    assert searching(texts, [0, 0, 0, 0], FALSE_STARTS)["right_with"] is None


def test_a_control_phrase_is_no_false_start(tmp_path: Path, micro_settings: Recipe) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    text = f"5: wait 4:\\boxed{{4}}\n\n{micro_settings.phrases.wrong}\n\n5: wait 6:\\boxed{{6}}"
    assert searching([text], [1], FALSE_STARTS)["false_starts"] == 4
    assert searching([without_phrases(stages, text)], [1], FALSE_STARTS)["false_starts"] == 2


def test_each_phase_2_starts_at_the_srt_model_and_differs_in_one_key(
    tmp_path: Path, micro_settings: Recipe
) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    rows = thinking_rows(stages, Chosen(micro_settings.distill, {}))
    assert list(rows) == list(LABELS)
    assert stages.play.trained == list(RESTRICTED)
    own: dict[str, Any] = micro_settings.distill.model_dump()
    for name, (on, _) in RESTRICTED.items():
        assert stages.play.starts[name] is None
        assert stages.play.settings[name].model_dump() == own | {"divergence_on": on}
        assert rows[name].model == str(stages.run.path(f"{name}/model"))


def test_a_recipe_that_restricts_its_own_phase_2_is_refused(tmp_path: Path, micro_settings: Recipe) -> None:
    stages = fake_stages(tmp_path / "run", micro_settings)
    check_all(stages)
    distill = micro_settings.distill.model_copy(update={"divergence_on": "final_answer"})
    restricted = fake_stages(tmp_path / "other", micro_settings.model_copy(update={"distill": distill}))
    with pytest.raises(UserError, match="restricts it") as raised:
        check_all(restricted)
    assert raised.value.where == "distill.divergence_on"
