"""What the tests of GRPO with several processes run in each of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from trl.trainer import utils

from baselines.small_run import QUESTIONS, small_run
from data_parallel_work import weights_of
from sdzero.baselines.grpo import train_grpo
from sdzero.baselines.grpo_rollouts import Rollouts
from sdzero.questions.question import Question
from sdzero.run_context import Budget
from sdzero.sharded import is_sharded
from sdzero.verify.verdict import Outcome, Verdict

SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 12,
    "micro_batch_size": 3,
    "responses_per_question": 4,
    "temperature": 3.0,
    "max_new_tokens": 48,
    "checkpoint_every": 2,
}


class ExactHead:
    """TRL's output head takes logits and gradients to float32; this one leaves them as they are, so that
    what is lost or doubled between processes is far above rounding."""

    @staticmethod
    def apply(
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias: None,
        targets_T: torch.Tensor,
        temperature: float,
        chunk_size: int,
        softcap: None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[torch.Tensor | None, ...]:
        assert (bias, softcap, scale) == (None, None, 1.0)
        log_p_TV = (hidden_TD @ weight_VD.T / temperature).log_softmax(-1)
        entropy_T = -(log_p_TV.exp() * log_p_TV).sum(-1)
        return log_p_TV.gather(-1, targets_T[:, None])[:, 0], entropy_T, None, None, None


def grade(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """By the text alone: two fifths of the finished responses are right, with a fifth the verifier fails."""
    outcomes = (Outcome.ERROR, Outcome.CORRECT, Outcome.WRONG, Outcome.CORRECT, Outcome.WRONG)
    return [Verdict(outcomes[crc32(text.encode()) % 5]) for _, text in items]


def grpo(folder: Path, stop_after: int | None = None, **changes: Any) -> dict[str, Any]:
    """Three steps of three questions; `stop_after` ends the training as a kill does."""
    utils._ChunkedLogProbFunction = ExactHead
    if stop_after is not None:
        sample = Rollouts.__call__

        def killed(self: Any, prompts: list[str], trainer: Any) -> Any:
            if trainer.state.global_step == stop_after:
                raise KeyboardInterrupt
            return sample(self, prompts, trainer)

        Rollouts.__call__ = killed  # type: ignore[method-assign]
    model = {"path": "tiny", "device": "cpu", "dtype": "float64"}
    sections = {"model": model, "grpo": SETTINGS | changes}
    with small_run(folder, QUESTIONS[:3], QUESTIONS[3:7], grade, **sections) as context:
        found: dict[str, Any] = {}
        keep = context.keep

        def watched(name: str, own: Any, facts: dict[str, Any]) -> None:
            found.update(weights=weights_of(own), sharded=is_sharded(own), facts=facts)
            keep(name, own, facts)

        context.keep = watched  # type: ignore[method-assign]
        found["start"] = weights_of(context.load("tiny"))
        assert context.recipe.grpo is not None
        try:
            train_grpo(context, "grpo", context.recipe.grpo, Budget("responses", 36))
        except KeyboardInterrupt:
            assert stop_after is not None
            return {}
        assert stop_after is None
        return found
