"""Means, intervals and tests over distinct questions and over seeds. Needs numpy only.

The unit is the question: k samples of one question are averaged first, since they are not independent.

Differences between two methods are paired by question. The interval is Student's t interval of the mean
difference: a closed form, the same on every run, and close to its nominal coverage for means over the
dozens of questions and more that an evaluation has; BCa bootstrap intervals are random, and too narrow
for small n. The p-value is from sign flips, which need no normal distribution: it assumes only that, were
the methods alike, each question's difference would be as likely to have the opposite sign.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

EXACT_FLIPS_UP_TO = 14
"""With no more non-zero differences than this, all sign patterns are enumerated."""
RANDOM_FLIPS = 10_000
FLIPS_SEED = 0
FLIPS_AT_ONCE = 500
TIE_TOLERANCE = 1e-12
"""Sums of the same numbers in another order differ by rounding; they count as equal."""


@dataclass(frozen=True)
class PairedDifference:
    """Mean of `a - b` over questions, its confidence interval (low, high), and a two-sided p-value."""

    difference: float
    interval: tuple[float, float]
    p: float

    @property
    def above(self) -> bool:
        """Whether a is above b: the interval lies wholly above 0."""
        return self.interval[0] > 0


def mean_and_standard_error(per_question: Sequence[float]) -> tuple[float, float | None]:
    """Mean over questions, and its standard error (sample standard deviation / sqrt(n)).

    A single question has no standard error: None.

    Raises:
        ValueError: no questions.
    """
    if not len(per_question):
        raise ValueError("no questions")
    values = np.asarray(per_question, dtype=np.float64)
    mean = float(values.mean())
    if len(values) == 1:
        return mean, None
    return mean, float(values.std(ddof=1) / math.sqrt(len(values)))


def pass_at_k(correct: int, n: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k responses is correct, from n of which
    `correct` are: 1 - C(n - correct, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).

    Raises:
        ValueError: not 0 <= correct <= n, or not 1 <= k <= n.
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct ({correct}) must be between 0 and n ({n})")
    if not 1 <= k <= n:
        raise ValueError(f"k ({k}) must be between 1 and n ({n})")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """Compare two methods on the same distinct questions, `a[i]` and `b[i]` belonging to question i.

    Raises:
        ValueError: unequal lengths, fewer than two questions, or a confidence not between 0 and 1.
    """
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} questions and b has {len(b)}")
    if len(a) < 2:
        raise ValueError("a paired difference needs at least two questions")
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    return PairedDifference(
        float(differences.mean()), _t_interval(differences, confidence), _sign_flip_p(differences)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction of several p-values, in their order (Holm 1979).

    The i-th smallest of m (from 0) becomes the largest of (m - j) * p_j over j <= i, at most 1. The
    chance that any true null hypothesis falls below alpha is then at most alpha.

    Raises:
        ValueError: a p-value is not in [0, 1].
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values are between 0 and 1, not {list(p_values)}")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected


def interval_of_mean(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval (low, high) of the mean over questions; None for one question.

    Raises:
        ValueError: no values, or a confidence not between 0 and 1.
    """
    return interval_over_seeds(values, confidence)


def interval_over_seeds(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's t interval (low, high) of the mean over seeds; None for one seed, which shows no spread.

    Raises:
        ValueError: no values, or a confidence not between 0 and 1.
    """
    if not len(values):
        raise ValueError("no values")
    if len(values) == 1:
        return None
    return _t_interval(np.asarray(values, dtype=np.float64), confidence)


def _t_interval(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    half_width = t_quantile(confidence, len(values) - 1) * error
    return mean - half_width, mean + half_width


def _sign_flip_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p: the share of sign patterns whose absolute sum is at least the observed one.

    Zeros do not change under a flip and are left out. Random patterns count the observed one among
    them, so that p is never 0 (Phipson and Smyth 2010).
    """
    moving = differences[differences != 0]
    if not len(moving):
        return 1.0
    observed = abs(float(moving.sum())) - TIE_TOLERANCE * float(np.abs(moving).sum())
    if len(moving) <= EXACT_FLIPS_UP_TO:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(moving))))
        return float(np.mean(np.abs(signs @ moving) >= observed))
    rng = np.random.default_rng(FLIPS_SEED)
    extreme = 0
    for _ in range(RANDOM_FLIPS // FLIPS_AT_ONCE):
        signs = rng.integers(0, 2, size=(FLIPS_AT_ONCE, len(moving))) * 2.0 - 1.0
        extreme += int(np.sum(np.abs(signs @ moving) >= observed))
    return (extreme + 1) / (RANDOM_FLIPS + 1)


def t_quantile(confidence: float, degrees: int) -> float:
    """The t for which a Student variable with `degrees` degrees of freedom lies in [-t, t] with
    probability `confidence`.

    Found by halving the angle theta = atan(t / sqrt(degrees)), in which the probability is a finite
    sum for whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4).

    Raises:
        ValueError: confidence is not between 0 and 1, or degrees is below 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence ({confidence}) must be between 0 and 1")
    if degrees < 1:
        raise ValueError(f"degrees of freedom ({degrees}) must be at least 1")
    low, high = 0.0, math.pi / 2
    while (middle := (low + high) / 2) not in (low, high):
        if _t_probability(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(degrees)


def _t_probability(theta: float, degrees: int) -> float:
    """P(|T| <= tan(theta) * sqrt(degrees))."""
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = degrees % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * cosine * cosine
    return 2 / math.pi * (theta + sine * total) if odd else sine * total
