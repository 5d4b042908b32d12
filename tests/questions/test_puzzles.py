"""reasoning-gym as a source: pools, ids, arguments, and entries that survive JSON."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.errors import UserError
from sdzero.questions.puzzles import decode, encode, puzzle_questions
from sdzero.questions.sources import load_questions
from sdzero.recipe import DataSettings


def _settings(*tasks: str, **keys: Any) -> DataSettings:
    return DataSettings(source="reasoning_gym", tasks=list(tasks), n1=1, n2=1, test=1, **keys)


def test_the_pool_is_shared_over_the_tasks() -> None:
    questions = list(puzzle_questions(_settings("chain_sum", "basic_arithmetic", pool=7)))
    assert [q.id for q in questions] == [f"chain_sum-{i}" for i in range(4)] + [
        f"basic_arithmetic-{i}" for i in range(3)
    ]
    assert {q.kind for q in questions} == {"chain_sum", "basic_arithmetic"}
    assert all(q.answer not in ("", None) for q in questions)


def test_the_split_seed_decides_the_questions() -> None:
    def texts(seed: int) -> list[str]:
        return [q.text for q in puzzle_questions(_settings("chain_sum", pool=5, split_seed=seed))]

    assert texts(1) == texts(1)
    # The generators add index to seed, so neighbouring seeds share most questions; distant ones do not.
    assert not set(texts(1)) & set(texts(1000))


def test_task_arguments_reach_the_generator() -> None:
    settings = _settings(
        "chain_sum", pool=5, task_arguments={"chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}
    )
    for question in load_questions(settings):
        assert question.metadata["entry"]["metadata"]["num_terms"] == 2
        assert question.metadata["arguments"]["max_digits"] == 1


def test_repeated_puzzles_are_merged() -> None:
    arguments = {"chain_sum": {"min_terms": 1, "max_terms": 1, "min_digits": 1, "max_digits": 1}}
    questions = load_questions(_settings("chain_sum", pool=100, task_arguments=arguments))
    assert len(questions) == 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (_settings("chain_sums"), "no task `chain_sums`\n.*\n.*did you mean chain_sum"),
        (_settings("chain_sum", task_arguments={"chain_sum": {"terms": 3}}), "refuses the arguments.*terms"),
        (
            _settings("chain_sum", task_arguments={"chain_sum": {"min_terms": 0}}),
            "min_terms must be positive",
        ),
        (_settings("chain_sum", task_arguments={"chain_sum": {"seed": 3}}), "`seed` is not an argument"),
        (_settings("chain_sum", "lcm", "gcd", "rearc", pool=3), "pool of 3 does not reach for 4 tasks"),
        (_settings("rush_hour", pool=3), "`rush_hour` gives no reference answer"),
    ],
)
def test_faults(settings: DataSettings, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_questions(settings)
    assert re.search(message, str(caught.value))


_hashable = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=5,
)
_values = st.recursive(
    _hashable | st.sets(_hashable, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_hashable, inner, max_size=3),
    max_leaves=10,
)


def _exactly(value: Any) -> Any:
    """The value with its types, since 1 == True == 1.0 and so on."""
    if isinstance(value, dict):
        return dict, [(_exactly(key), _exactly(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [_exactly(item) for item in value]
    if isinstance(value, set):
        return set, sorted((_exactly(item) for item in value), key=repr)
    return type(value), value


@given(_values)
def test_a_value_comes_back_from_json_with_its_types(value: Any) -> None:
    assert _exactly(decode(json.loads(json.dumps(encode(value), allow_nan=False)))) == _exactly(value)


@given(st.dictionaries(st.sampled_from(["__sdzero__", "items", "x"]), st.integers()))
def test_data_that_looks_like_the_encoding_comes_back(value: dict[str, int]) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


@pytest.mark.parametrize("value", [object(), float("nan"), [b"bytes"], {"key": 1j}])
def test_what_json_cannot_hold_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="not JSON-like"):
        encode(value)
