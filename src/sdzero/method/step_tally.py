"""What one step of the on-policy trainer adds up, and the numbers that are logged of it."""

from collections.abc import Sequence
from typing import Any

from sdzero import ranks
from sdzero.method.micro_batches import Context
from sdzero.method.roles import ContrastivePair, DistillationPair, WeightedSequence
from sdzero.method.step_rollouts import StepRollout


def begin_tally(
    rollout: StepRollout,
    contexts: Sequence[tuple[Context, int]],
    rehearsal: Sequence[WeightedSequence],
    measure: str,
) -> dict[str, Any]:
    """What is known after the rollout; the sums over tokens, of `measure` and entropy, begin at 0."""
    graded = rollout.graded
    counted = [one for one in graded if one.verdict.counts]
    return {
        "reward": sum(one.reward for one in counted) / max(len(counted), 1),
        "tokens": sum(one.sampled_tokens for one in graded) / max(len(graded), 1),
        "truncated": sum(one.truncated for one in graded),
        "target_tokens": sum(len(c.targets) for c, _ in contexts)
        + sum(weight > 0 for s in rehearsal for weight in s.weights),
        "teacher_tokens": sum(teacher_tokens(context) for context, _ in contexts),
        "rollout_seconds": rollout.seconds,
        "staleness": rollout.staleness,
        f"sum_{measure}_r0": 0.0,
        f"sum_{measure}_r1": 0.0,
        "tokens_r0": 0,
        "tokens_r1": 0,
        "sum_entropy": 0.0,
    }


def add_up_tally(tally: dict[str, Any]) -> dict[str, Any]:
    """The tally of the whole step: the sums over tokens, of which each process has a part, added up."""
    if ranks.count() == 1:
        return tally
    partial = [key for key in tally if key.startswith("sum_") or key in ("tokens_r0", "tokens_r1")]
    return tally | dict(zip(partial, ranks.add_up([tally[key] for key in partial]), strict=True))


def teacher_tokens(context: Context) -> int:
    """How many tokens the teacher reads of a context."""
    if isinstance(context, ContrastivePair):
        return len(context.teacher_ids) + len(context.other_ids) + len(context.student_ids)
    return len(context.teacher_ids) if isinstance(context, DistillationPair) else 0


def tally_metrics(tally: dict[str, Any], measure: str) -> dict[str, Any]:
    """The step's metrics: means over responses and, for the sums, over target tokens."""
    both = tally["tokens_r0"] + tally["tokens_r1"]
    return {
        "reward": tally["reward"],
        "tokens": tally["tokens"],
        "truncated": tally["truncated"],
        f"{measure}_r0": tally[f"sum_{measure}_r0"] / max(tally["tokens_r0"], 1),
        f"{measure}_r1": tally[f"sum_{measure}_r1"] / max(tally["tokens_r1"], 1),
        "entropy": tally["sum_entropy"] / max(both, 1),
        "rollout_seconds": tally["rollout_seconds"],
        "staleness": tally["staleness"],
    }
