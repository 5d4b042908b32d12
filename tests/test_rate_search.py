"""The learning-rate search, with trainings that are played: what is tried, chosen, kept and counted."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fake_stages import COLLECTED, DISTILLED, SCORED, Play, fake_stages, play_baselines, play_scores
from sdzero.compare_methods import chosen_settings, parse_methods
from sdzero.errors import CollapseError, UserError
from sdzero.rate_search import search
from sdzero.recipe import Recipe
from sdzero.run_context import Budget


class Searching:
    """A comparison's folder and recipe, with the search's runs played; `opened` are their recipes."""

    def __init__(self, folder: Path, recipe: Recipe, play: Play) -> None:
        self.folder, self.recipe, self.play = folder, recipe, play
        self.opened: list[Recipe] = []

    def search(self, *names: str, factors: list[float] | None = None, **evaluate: Any) -> dict[str, Any]:
        compared = self.recipe.compare
        if factors is not None:
            compared = compared.model_copy(update={"rate_factors": factors})
        scoring = self.recipe.evaluate.model_copy(update=evaluate)
        recipe = self.recipe.model_copy(update={"compare": compared, "evaluate": scoring})
        found = search(recipe, self.folder, parse_methods(names), lambda line: None, lambda *counts: None)
        assert json.loads((self.folder / "search.json").read_text()) == found
        return found


@pytest.fixture
def searching(tmp_path: Path, micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch) -> Searching:
    made = Searching(tmp_path, micro_settings, Play())

    @contextmanager
    def open_run(recipe: Recipe, folder: Path, *_: Any, **__: Any) -> Iterator[Any]:
        made.opened.append(recipe)
        yield fake_stages(folder, recipe, made.play)

    monkeypatch.setattr("sdzero.rate_search.open_run", open_run)
    play_baselines(monkeypatch)
    play_scores(monkeypatch, made.play)
    return made


# The recipe's rates are 2e-4 for phase 2 and 3e-4 for RFT; its factors are 0.5 and 1.


def test_the_best_on_the_tuning_questions_is_chosen(searching: Searching) -> None:
    searching.play.averages = {"distill-x0.5": 0.75, "distill-x1": 0.5, "rft-x0.5": 0.25, "rft-x1": 0.5}
    found = searching.search("sdzero", "rft")
    assert found["methods"]["sdzero"]["learning_rate"] == pytest.approx(1e-4)
    assert found["methods"]["rft"]["learning_rate"] == pytest.approx(3e-4)
    assert {tuple(ids) for _, ids in searching.play.scored.values()} == {("q8",)}
    assert [(recipe.seed, recipe.evaluate.on) for recipe in searching.opened] == [(1000, "tuning")]
    for own in found["methods"].values():
        assert own["at_the_edge"], "of two rates each is at the edge"


def test_of_equally_good_rates_the_lower_one_is_chosen(searching: Searching) -> None:
    found = searching.search("sdzero", "rft", factors=[2.0, 0.5, 1.0])
    assert found["methods"]["rft"]["learning_rate"] == pytest.approx(1.5e-4)


def test_the_middle_of_three_rates_is_not_at_the_edge(searching: Searching) -> None:
    searching.play.averages = {"rft-x1": 0.75}
    found = searching.search("sdzero", "rft", factors=[2.0, 0.5, 1.0])
    assert not found["methods"]["rft"]["at_the_edge"]
    assert found["methods"]["sdzero"]["at_the_edge"]


def test_a_rate_that_collapses_scores_nothing_and_is_not_chosen(searching: Searching) -> None:
    searching.play.averages = {"rft-x0.5": 0.25, "rft-x1": 0.75}
    searching.play.collapses = {"rft-x1": CollapseError("the reward fell")}
    own = searching.search("sdzero", "rft")["methods"]["rft"]
    assert [(one["avg"], one["mean_tokens"], one["collapsed"]) for one in own["tried"]] == [
        (0.25, 10.0, None),
        (0.0, None, "the reward fell"),
    ]
    assert own["learning_rate"] == pytest.approx(1.5e-4)
    assert "rft-x1" not in searching.play.scored


def test_a_rate_that_collapses_loses_even_to_one_that_gets_nothing_right(searching: Searching) -> None:
    searching.play.averages = {"rft-x1": 0.0}
    searching.play.collapses = {"rft-x0.5": CollapseError("the reward fell")}
    assert searching.search("sdzero", "rft")["methods"]["rft"]["learning_rate"] == pytest.approx(3e-4)


def test_the_budget_is_that_of_the_first_rate_at_which_sdzero_did_not_collapse(searching: Searching) -> None:
    searching.play.collapses = {"distill-x0.5": CollapseError("phase 2 collapsed")}
    searching.search("rft", "sdzero")
    assert searching.play.trained[:2] == ["distill-x0.5", "distill-x1"], "it comes first, named first or not"
    # Phase 2 at factor 0.5 is marked as collapsed and not as done: what it spent is no budget.
    both = Budget("responses", COLLECTED + DISTILLED)
    assert searching.play.budgets == {"rft-x0.5": both, "rft-x1": both}


def test_the_cost_is_everything_that_the_search_sampled_scoring_included(searching: Searching) -> None:
    found = searching.search("sdzero", "rft")
    budget = COLLECTED + DISTILLED
    scorings = 4
    # Collected once; phase 2, then RFT's budget, at two rates each.
    expected = COLLECTED + 2 * DISTILLED + 2 * budget + scorings * SCORED
    assert found["cost"]["responses"] == expected == 146
    assert found["cost"]["sampled_tokens"] == 1460
    assert found["methods"]["rft"]["tried"][0]["responses"] == budget, "a rate's own has no scoring in it"


def test_a_budget_of_another_kind_shares_the_search(searching: Searching) -> None:
    found = searching.search("sdzero", "rft", "rft@tokens")
    assert set(found["methods"]) == {"sdzero", "rft"}
    assert searching.play.trained == ["distill-x0.5", "distill-x1", "rft-x0.5", "rft-x1"]
    assert {budget.match for budget in searching.play.budgets.values()} == {"responses"}


def test_base_and_srt_have_no_rate_of_their_own(searching: Searching) -> None:
    assert set(searching.search("base", "srt", "sdzero")["methods"]) == {"sdzero"}


def test_methods_that_were_searched_before_stay(searching: Searching) -> None:
    first = searching.search("sdzero", "rft", "negative")
    later = searching.search("sdzero", "grpo")
    assert set(later["methods"]) == {"sdzero", "rft", "negative", "grpo"}
    for name in ("sdzero", "rft", "negative"):
        assert later["methods"][name] == first["methods"][name]
    assert later["cost"]["responses"] > first["cost"]["responses"], "that of all of them"
    assert len(searching.play.trained) == 8, "two rates of each of four, once"


def test_a_search_at_other_rates_forgets_what_was_found_at_these(searching: Searching) -> None:
    searching.search("sdzero", "rft")
    found = searching.search("sdzero", factors=[0.5, 1.0, 2.0])
    assert set(found["methods"]) == {"sdzero"}
    assert searching.play.trained == ["distill-x0.5", "distill-x1", "rft-x0.5", "rft-x1", "distill-x2"]


def test_a_single_factor_tries_nothing_and_a_study_takes_the_same_rate(searching: Searching) -> None:
    found = searching.search("sdzero", "rft", factors=[2.0], on="tuning")
    assert searching.opened == []
    assert searching.play.trained == []
    assert found["seed"] is None
    assert set(found["cost"].values()) == {0}
    for kind, rate in (("sdzero", 4e-4), ("rft", 6e-4)):
        assert found["methods"][kind]["learning_rate"] == pytest.approx(rate)
        assert found["methods"][kind]["tried"] == []
        assert not found["methods"][kind]["at_the_edge"]
        assert chosen_settings(searching.recipe, searching.folder, kind).learning_rate == pytest.approx(rate)
    searching.search("sdzero", "sft", factors=[2.0])
    assert chosen_settings(searching.recipe, searching.folder, "rft").learning_rate == pytest.approx(6e-4)


def test_a_study_that_comes_first_takes_the_rate_that_a_single_factor_will_give(
    tmp_path: Path, micro_settings: Recipe
) -> None:
    compared = micro_settings.compare.model_copy(update={"rate_factors": [2.0]})
    recipe = micro_settings.model_copy(update={"compare": compared})
    assert chosen_settings(recipe, tmp_path, "rft").learning_rate == pytest.approx(6e-4)


def test_choosing_and_scoring_on_the_same_questions_is_refused(searching: Searching) -> None:
    with pytest.raises(UserError, match="chosen and scored on the same questions") as raised:
        searching.search("sdzero", "rft", on="tuning")
    assert raised.value.where == "evaluate.on"
    assert searching.opened == []
    assert not (searching.folder / "search.json").exists()
