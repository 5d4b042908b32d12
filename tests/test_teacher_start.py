"""What is refused before anything is sampled, for how the processes were started."""

import pytest

from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.teacher_start import check_started


def with_batch(recipe: Recipe, stage: str, size: int) -> Recipe:
    changed = getattr(recipe, stage).model_copy(update={"batch_size": size})
    return recipe.model_copy(update={stage: changed})


@pytest.mark.parametrize("stage", ["srt", "distill", "rft"])
def test_a_batch_that_cannot_be_shared_is_refused_by_its_key(
    micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = micro_settings
    for name in ("srt", "distill", "rft"):
        whole = with_batch(whole, name, 6)
    uneven = with_batch(whole, stage, 5)
    check_started(uneven)  # by one process
    monkeypatch.setenv("WORLD_SIZE", "3")
    check_started(whole)
    with pytest.raises(UserError, match="no multiple of the number of processes") as refused:
        check_started(uneven)
    assert refused.value.where == f"{stage}.batch_size"


def test_stages_that_are_left_out_share_nothing(
    micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    recipe = with_batch(with_batch(with_batch(micro_settings, "srt", 5), "rft", 5), "distill", 6)
    srt = recipe.srt.model_copy(update={"checkpoint": "tiny"})
    rft = recipe.rft.model_copy(update={"enabled": False})
    check_started(recipe.model_copy(update={"srt": srt, "rft": rft}))
