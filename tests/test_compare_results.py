"""`compare.json` from made-up scores, worked by hand."""

from typing import Any

import pytest

from sdzero.compare_methods import cost_of, parse_methods
from sdzero.compare_results import (
    by_kind,
    compare_results,
    compare_table,
    notes,
    p_value,
    paired,
    question_means,
)
from sdzero.errors import UserError
from sdzero.recipe import Recipe

SEARCH: dict[str, Any] = {
    "factors": [0.5, 1.0, 2.0],
    "seed": 1000,
    "questions": 4,
    "methods": {"sdzero": {"learning_rate": 2e-4, "at_the_edge": False}},
    "cost": {"responses": 120, "seconds": 3.0},
}


def scores(rewards: dict[str, list[int]], tokens: float = 10.0) -> dict[str, Any]:
    means = [sum(own) / len(own) for own in rewards.values()]
    return {
        "scores": {
            "evaluation": {
                "avg": sum(means) / len(means),
                "pass_at_k": sum(max(own) for own in rewards.values()) / len(rewards),
                "mean_tokens": tokens,
                "questions": len(rewards),
            },
            "revision": {"first": 0.5, "revised": 0.75},
            "per_question": rewards,
        },
        "cost": cost_of(["train"], {"train": {"responses": 8, "sampled_tokens": 80, "seconds": 2.0}}),
    }


FOUND = [
    {
        "rft": scores({"a": [0, 0], "b": [1, 1], "c": [0, 1]}),
        "sdzero": scores({"a": [1, 1], "b": [1, 1], "c": [0, 1]}, tokens=6.0),
    },
    {
        "rft": scores({"a": [0, 1], "b": [1, 1], "c": [0, 0]}),
        "sdzero": scores({"a": [1, 1], "b": [0, 1], "c": [1, 1]}, tokens=8.0),
    },
]


def test_the_means_and_differences_are_those_worked_by_hand(micro_settings: Recipe) -> None:
    results = compare_results(micro_settings, ["rft", "sdzero"], [0, 1], FOUND, SEARCH)
    rft, sdzero = results["methods"]["rft"], results["methods"]["sdzero"]
    assert rft["per_seed"] == pytest.approx([0.5, 0.5])
    assert sdzero["mean"] == pytest.approx((5 / 6 + 5 / 6) / 2)
    assert sdzero["mean_tokens"] == 7.0
    assert (rft["responses"], rft["sampled_tokens"], rft["trained_tokens"]) == (8, 80, 0)
    # By question: a 1 - 0.25, b 0.75 - 1, c 0.75 - 0.25, the mean of which is 1/3.
    assert results["against"]["rft"]["difference"] == pytest.approx((0.75 - 0.25 + 0.5) / 3)
    assert "sdzero" not in results["against"]
    assert results["questions"] == 3
    low, high = results["methods"]["rft"]["interval"]
    assert low == pytest.approx(high), "two equal seeds have no spread"


def test_the_difference_counts_each_question_once_whatever_the_seeds() -> None:
    means = question_means([one["rft"]["scores"] for one in FOUND])
    assert means == pytest.approx({"a": 0.25, "b": 1.0, "c": 0.25})


def test_scores_by_kind_are_means_over_the_questions_of_a_kind() -> None:
    kinds = {"a": "sum", "b": "sum", "c": "word"}
    assert by_kind({"a": [1, 0], "b": [1, 1], "c": [0]}, kinds) == {"sum": 0.75, "word": 0.0}
    assert by_kind({"a": [1]}, kinds) == {}, "one kind says no more than the whole"


def test_several_p_values_are_corrected_together() -> None:
    found = [
        {
            "sdzero": scores({str(q): [1] for q in range(8)}),
            "low": scores({str(q): [0] for q in range(8)}),
            "same": scores({str(q): [1] for q in range(8)}),
        }
    ]
    compared = paired(["sdzero", "low", "same"], found, "sdzero", reference_first=True)
    assert compared["low"]["p_alone"] == pytest.approx(2 / 2**8), "all eight signs alike, two-sided"
    assert compared["low"]["p"] == pytest.approx(2 * 2 / 2**8)
    assert compared["same"]["p"] == 1.0
    flipped = paired(["sdzero", "low"], found, "sdzero", reference_first=False)
    assert flipped["low"]["difference"] == -1.0


def test_the_table_and_its_notes_say_what_a_reader_must_know(micro_settings: Recipe) -> None:
    search = SEARCH | {"methods": {"rft": {"learning_rate": 1e-3, "at_the_edge": True}}}
    results = compare_results(micro_settings, ["rft", "sdzero"], [0, 1], FOUND, search)
    assert compare_table(results).row_count == 2
    text = " ".join(notes(results))
    assert "Holm-corrected" in text
    assert "one base model" in text
    assert "edge of what was tried for: RFT" in text
    assert "120 responses" in text


@pytest.mark.parametrize(("p", "text"), [(0.0004, "< 0.001"), (0.034, "0.034"), (1.0, "1")])
def test_p_values_are_short(p: float, text: str) -> None:
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["grpoo", "sdzero"], "did you mean `grpo`"),
        (["rft"], "`sdzero` is missing"),
        (["rft", "rft", "sdzero"], "stands there twice"),
        (["rft@joules", "sdzero"], "no method with a budget"),
        (["srt@tokens", "sdzero"], "no method with a budget"),
    ],
)
def test_methods_that_cannot_be_compared_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_methods(names)


def test_a_name_with_a_budget_of_its_own() -> None:
    method = parse_methods(["rft@tokens", "sdzero"])[0]
    assert (method.name, method.kind, method.match) == ("rft@tokens", "rft", "tokens")
    assert method.stages == ("labels", "rft@tokens")
