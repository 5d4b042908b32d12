"""What the trainers share: when training ends without progress, counted from what a checkpoint keeps."""

import pytest
from transformers import TrainerState

from sdzero.method.training import evaluations_without_progress


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([], 0), ([0.1], 0), ([0.1, 0.2], 0), ([0.2, 0.1], 1), ([0.2, 0.2], 1), ([0.1, 0.3, 0.2, 0.3], 2)],
)
def test_evaluations_without_progress(scores: list[float], expected: int) -> None:
    state = TrainerState()
    for score in scores:
        state.log_history += [{"loss": 0.5}, {"eval_avg": score}]
    assert evaluations_without_progress(state) == expected
