"""The self-test: a model is its own teacher without any divergence, and one that is not is found out."""

import math
from pathlib import Path
from typing import Any

import pytest

from sdzero.method.teacher import Teacher
from sdzero.onprem import self_test as own
from sdzero.onprem.findings import Subject
from sdzero.onprem.self_test import judge, self_test
from sdzero.recipe import Recipe


def test_the_embedded_model_has_no_divergence_from_itself(micro_settings: Recipe) -> None:
    (found,) = self_test(Subject(micro_settings))
    assert found.held, found.detail
    assert "at most 0.0e+00 nats" in found.detail or "e-" in found.detail
    assert " s)" in found.detail


@pytest.mark.parametrize("kind", ["forward", "mixed", "jsd"])
def test_so_in_every_direction_and_with_packed_rows(micro_settings: Recipe, kind: str) -> None:
    distill = micro_settings.distill.model_copy(update={"divergence": kind})
    model = micro_settings.model.model_copy(update={"packing": "on"})
    (found,) = self_test(Subject(micro_settings.model_copy(update={"distill": distill, "model": model})))
    assert found.held, found.detail


def test_a_shift_of_one_position_is_found(micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Teacher.hidden_states

    def shifted(teacher: Teacher, ids: Any, positions: Any, lengths: Any = None) -> Any:
        return real(teacher, ids, positions - 1, lengths)

    monkeypatch.setattr(Teacher, "hidden_states", shifted)
    (found,) = self_test(Subject(micro_settings))
    assert not found.held
    assert "would be rounding" in found.detail
    assert "model.attention=eager" in found.todo


def test_a_phrase_that_reaches_nobody_is_found(
    micro_settings: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = own.divergences
    monkeypatch.setattr(own, "divergences", lambda *given: [0.0 for _ in real(*given)])
    (found,) = self_test(Subject(micro_settings))
    assert not found.held
    assert "changes nothing" in found.detail


def test_what_the_figures_mean() -> None:
    assert judge([0.0, -1e-7], [0.2, 0.4], 1e-5, 2.0).held
    assert "0.300 on average" in judge([0.0], [0.2, 0.4], 1e-5, 2.0).detail
    assert not judge([2e-5], [0.2], 1e-5, 2.0).held
    assert not judge([math.nan], [0.2], 1e-5, 2.0).held
    assert not judge([0.0], [math.nan], 1e-5, 2.0).held


def test_it_can_be_left_out_and_needs_what_came_before(micro_settings: Recipe, tmp_path: Path) -> None:
    (found,) = self_test(Subject(micro_settings, quick=True))
    assert (found.held, found.detail) == (True, "not done (--quick)")
    assert list(self_test(Subject())) == []
    for failed in ("data", "model", "room"):
        assert list(self_test(Subject(micro_settings, failed={failed}))) == []
