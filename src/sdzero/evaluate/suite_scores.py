"""Scores on a suite: of each benchmark with and without contaminated questions, and their mean."""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from sdzero.evaluate.stats import interval_of_mean, mean_and_standard_error

CONFIDENCE = 0.95


def summary(scored: Mapping[str, Any], contaminated: set[str]) -> dict[str, Any]:
    """A benchmark's scores, with all questions and (`clean`) with those alone that are not trained on.

    `interval` is the 95% interval over questions, None for one question; fractions are in [0, 1].
    """
    means = {question: sum(own) / len(own) for question, own in scored["per_question"].items()}
    clean = [mean for question, mean in means.items() if question not in contaminated]
    return {
        **scored["evaluation"],
        "interval": _interval(list(means.values())),
        "clean": None if not clean else _clean(clean),
        "per_question": scored["per_question"],
    }


def _clean(means: Sequence[float]) -> dict[str, Any]:
    mean, error = mean_and_standard_error(means)
    return {"avg": mean, "se": error, "interval": _interval(means), "questions": len(means)}


def _interval(means: Sequence[float]) -> list[float] | None:
    found = interval_of_mean(means, CONFIDENCE)
    return None if found is None else _in_range(*found)


def _in_range(low: float, high: float) -> list[float]:
    """An interval of a rate, which lies between 0 and 1."""
    return [max(low, 0.0), min(high, 1.0)]


def macro(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over benchmarks, each with equal weight, with all questions and with the clean ones.

    The benchmarks are fixed and their questions are drawn, so the variances of the means add up; the interval
    is the normal one. None where a benchmark has a single question, or no clean one.
    """
    clean = [one["clean"] for one in found.values()]
    return {
        "avg": sum(one["avg"] for one in found.values()) / len(found),
        "interval": _macro_interval(list(found.values())),
        "clean_avg": None if None in clean else sum(one["avg"] for one in clean) / len(clean),
        "clean_interval": None if None in clean else _macro_interval(clean),
    }


def _macro_interval(scores: Sequence[Mapping[str, Any]]) -> list[float] | None:
    errors = [one["se"] for one in scores]
    if None in errors:
        return None
    mean = sum(one["avg"] for one in scores) / len(scores)
    half = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2) * math.sqrt(sum(e**2 for e in errors)) / len(scores)
    return _in_range(mean - half, mean + half)
