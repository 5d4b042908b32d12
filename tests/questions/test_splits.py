"""Distinct questions, balanced kinds, disjoint sets, and questions as JSON."""

import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import (
    check_disjoint,
    normalise,
    question_from_json,
    question_to_json,
    split_questions,
)
from sdzero.recipe import DataSettings
from sdzero.tiny.arithmetic import post_training_problems
from sdzero.tiny.problem import is_pretraining


def _questions(count: int, kind: str = "", prefix: str = "q") -> list[Question]:
    return [Question(f"{prefix}{i}", f"What is {prefix} {i}?", str(i), kind) for i in range(count)]


def _settings(**sizes: int) -> DataSettings:
    return DataSettings(source="jsonl", path="unused", **{"n1": 5, "n2": 6, "tuning": 2, "test": 4, **sizes})


def test_the_sets_have_their_sizes_and_share_nothing() -> None:
    sets = split_questions(_questions(40), _settings())
    assert [len(part) for part in (sets.n1, sets.n2, sets.tuning, sets.test)] == [5, 6, 2, 4]
    assert len({q.text for part in (sets.n1, sets.n2, sets.tuning, sets.test) for q in part}) == 17


def test_the_test_set_does_not_change_with_the_order_of_the_data_or_the_sizes_of_the_others() -> None:
    questions = _questions(40)
    before = split_questions(questions, _settings())
    random.Random(3).shuffle(questions)
    after = split_questions(questions, _settings(n1=1, n2=20, tuning=3))
    assert after.test == before.test
    assert after.tuning[:2] == before.tuning


def test_another_split_seed_gives_another_test_set() -> None:
    questions = _questions(40)
    assert (
        split_questions(questions, _settings()).test
        != split_questions(questions, _settings(split_seed=1)).test
    )


def test_a_question_that_differs_in_white_space_only_is_one_question() -> None:
    questions = [Question("1", "What is\n one?", "1"), Question("2", " What  is one? ", "1"), *_questions(5)]
    sets = split_questions(questions, _settings(n1=2, n2=2, tuning=1, test=1))
    texts = [normalise(q.text) for part in (sets.n1, sets.n2, sets.tuning, sets.test) for q in part]
    assert sorted(texts) == sorted({normalise(q.text) for q in questions})
    with pytest.raises(UserError, match=r"7 distinct questions are needed, but there are 6"):
        split_questions(questions, _settings(n1=3, n2=2, tuning=1, test=1))


def test_kinds_are_balanced_as_far_as_they_reach() -> None:
    questions = _questions(100, "large", "l") + _questions(30, "middle", "m") + _questions(3, "small", "s")
    sets = split_questions(questions, _settings(test=9, tuning=4, n1=40, n2=50))
    assert Counter(q.kind for q in sets.test) == {"large": 3, "middle": 3, "small": 3}
    assert Counter(q.kind for q in sets.tuning) == {"large": 2, "middle": 2}
    assert Counter(q.kind for q in sets.n1) == {"large": 20, "middle": 20}
    assert Counter(q.kind for q in sets.n2) == {"large": 45, "middle": 5}


def test_the_arithmetic_source_splits_without_touching_the_pretraining_side() -> None:
    settings = DataSettings(n1=220, n2=330, tuning=55, test=110)
    sets = split_questions(load_questions(settings), settings)
    assert set(Counter(q.kind for q in sets.test).values()) == {10}
    assert not any(is_pretraining(q.text) for q in sets.n1 + sets.n2 + sets.tuning + sets.test)


def test_an_arithmetic_question_from_the_pretraining_side_is_refused() -> None:
    text = next(t for t in ("2+3", "11+12", "12+13", "13+14", "14+15", "15+16", "16+17") if is_pretraining(t))
    questions = [Question(p.text, p.text, str(p.answer)) for p in post_training_problems()[:3]]
    settings = DataSettings(n1=1, n2=1, tuning=1, test=1)
    with pytest.raises(UserError, match="was pre-trained on"):
        split_questions([*questions, Question(text, text, "0")], settings)


def test_an_overlap_names_both_sets_and_an_example() -> None:
    shared = Question("7", "How many\tlegs has a fly?", "6")
    other = Question("8", "How many legs has  a fly?", "six")
    with pytest.raises(
        UserError, match=r"`n1` and `test` share a question: How many legs has a fly\?"
    ) as caught:
        check_disjoint({"n1": [shared], "test": [other]})
    assert "8" in str(caught.value.where)
    with pytest.raises(UserError, match="`n1` holds a question twice"):
        check_disjoint({"n1": [shared, other]})


@given(
    st.builds(
        Question,
        st.text(),
        st.text(),
        st.text(),
        st.text(),
        st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.booleans())),
    )
)
def test_a_question_comes_back_from_json(question: Question) -> None:
    assert question_from_json(json.loads(json.dumps(question_to_json(question)))) == question
