"""Reward functions with TRL's signature as verifiers."""

from pathlib import Path
from typing import Any

import pytest

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.recipe import VerifierSettings
from sdzero.verify.pool import pool_of
from sdzero.verify.reward_function import RewardFunctionVerifier, is_reward_function
from sdzero.verify.verdict import Outcome

FUNCTIONS = """
def matches(completions, answer, **kwargs):
    return [float(own.strip() == right) for own, right in zip(completions, answer)]


def share(prompts, completions, unit, **kwargs):
    assert prompts == [[{"role": "user", "content": "How long?"}]] and unit == ["m"]
    return [len(completion[0]["content"]) / 10 for completion in completions]


def no_columns(completions):
    return [1.0]


def plain(question, response):
    return response == question.answer
"""
QUESTION = Question("q", "How long?", "4", metadata={"unit": "m"})


@pytest.fixture(autouse=True)
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_for_tests.py").write_text(FUNCTIONS)
    monkeypatch.chdir(tmp_path)


def settings(name: str, **more: Any) -> VerifierSettings:
    own = {"name": f"rewards_for_tests:{name}", "workers": 1, "timeout_seconds": 10.0}
    return VerifierSettings(**own, **more)


def graded(own: VerifierSettings, *responses: str) -> list[tuple[str, str]]:
    with pool_of(own) as pool:
        pool.check_canaries()
        verdicts = pool.grade([(QUESTION, response) for response in responses])
    return [(str(verdict.outcome), verdict.detail) for verdict in verdicts]


def test_binary_rewards_with_the_answer_as_a_column() -> None:
    assert graded(settings("matches"), " 4", "5") == [("correct", "reward 1"), ("wrong", "reward 0")]


def test_messages_columns_and_a_threshold() -> None:
    own = settings("share", threshold=0.5, completions="messages")
    assert [outcome for outcome, _ in graded(own, "abcde", "abc")] == ["correct", "wrong"]


def test_other_values_without_a_threshold_are_errors_that_say_so() -> None:
    ((outcome, detail),) = graded(settings("share", completions="messages"), "abc")
    assert outcome == "error"
    assert "returned 0.3" in detail
    assert "verifier.threshold" in detail


def test_a_function_is_given_no_more_than_it_takes() -> None:
    assert graded(settings("no_columns"), "x")[0][0] == "correct"


def test_the_settings_of_a_reward_function_fit_no_other_verifier() -> None:
    with (
        pytest.raises(UserError, match="is no reward function"),
        pool_of(settings("plain", threshold=0.5)) as pool,
    ):
        pool.check_canaries()
    with pytest.raises(ValueError, match="go with a reward function"):
        VerifierSettings(name="math", threshold=0.5)


@pytest.mark.parametrize("returned", [1.0, [1.0, 0.0], [None], ["1"], [float("nan")]])
def test_what_is_no_list_of_one_number_raises(returned: Any) -> None:
    verifier = RewardFunctionVerifier("own", lambda completions: returned, threshold=0.5)
    with pytest.raises(TypeError):
        verifier.grade(QUESTION, "x")


def test_what_counts_as_a_reward_function() -> None:
    def trl(prompts: Any, completions: Any, **kwargs: Any) -> list[float]:
        return []

    assert is_reward_function(trl)
    assert not is_reward_function(lambda question, response: True)
    assert (
        RewardFunctionVerifier("own", lambda completions: [1]).grade(QUESTION, "x").outcome is Outcome.CORRECT
    )
