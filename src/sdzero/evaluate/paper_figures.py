"""What the paper reports (arXiv 2604.12002v1, table 1; avg@8 in percent), to stand beside our own figures.

The figures are from a public transcription of the table. Each row's mean over the eight benchmarks is the
average that the paper gives for it, to rounding, which a test checks. Which questions the paper's
OpenR1-Math, Codeforces and LiveCodeBench have is not known: see docs/benchmarks.md.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

ORDER = ("aime24", "aime25", "hmmt25", "amobench", "openr1math", "math500", "codeforces", "livecodebench")
AVERAGE = "average"

MODELS = {
    "Qwen3-4B-Instruct": re.compile(r"qwen3-4b-instruct(-2507)?"),
    "Olmo-3-7B-Instruct": re.compile(r"olmo-3-7b-instruct"),
}
"""The paper's models, and what the last part of a hub id or folder of the same model is called."""

TABLE = {
    "Qwen3-4B-Instruct": {
        "base": (59.6, 45.8, 26.7, 9.8, 55.8, 91.0, 48.0, 61.8, 49.8),
        "sft": (61.7, 46.3, 31.3, 7.3, 56.1, 91.3, 49.1, 57.2, 50.0),
        "rft": (64.2, 52.1, 37.1, 11.3, 59.3, 91.9, 50.9, 68.0, 54.3),
        "grpo": (62.5, 50.0, 30.4, 11.0, 62.9, 93.5, 52.2, 62.6, 53.1),
        "sdft": (63.3, 47.9, 32.9, 9.0, 57.0, 91.1, 49.3, 59.2, 51.2),
        "srt": (66.7, 59.2, 40.0, 16.0, 59.8, 92.4, 52.7, 74.4, 57.6),
        "sdzero": (68.3, 60.0, 45.4, 16.0, 60.4, 93.6, 56.1, 82.6, 60.3),
    },
    "Olmo-3-7B-Instruct": {
        "base": (56.7, 42.1, 25.0, 1.3, 48.9, 91.1, 31.7, 32.4, 41.1),
        "sft": (51.3, 43.8, 30.4, 1.3, 48.5, 91.4, 31.7, 41.0, 42.4),
        "rft": (56.7, 48.3, 35.8, 2.3, 50.9, 91.4, 39.2, 49.4, 46.7),
        "grpo": (54.6, 43.8, 25.8, 4.8, 56.9, 91.8, 37.1, 43.6, 44.8),
        "sdft": (52.9, 45.0, 32.1, 1.3, 49.0, 91.2, 33.5, 42.3, 43.4),
        "srt": (59.2, 52.9, 39.6, 3.5, 52.4, 92.3, 42.8, 59.6, 50.3),
        "sdzero": (61.7, 53.8, 40.4, 5.5, 55.3, 94.0, 43.5, 57.8, 51.5),
    },
}
"""Percent, in the order of `ORDER`, then the average of the eight."""


def model_of(path: str) -> str | None:
    """The paper's name of the model that a hub id or folder is named after; None for any other model."""
    last = PurePath(path).name.casefold()
    return next((name for name, pattern in MODELS.items() if pattern.fullmatch(last)), None)


def paper_figures(path: str, benchmarks: Sequence[str]) -> dict[str, Any] | None:
    """The paper's model and, by method, its figures of these benchmarks as fractions; None for other models.

    `average` is the paper's own for all eight benchmarks, and for fewer the mean of their figures.
    """
    model = model_of(path)
    if model is None:
        return None
    figures = {}
    for method, row in TABLE[model].items():
        own = {name: row[ORDER.index(name)] / 100 for name in benchmarks}
        whole = set(benchmarks) == set(ORDER)
        figures[method] = own | {AVERAGE: row[-1] / 100 if whole else sum(own.values()) / len(own)}
    return {"model": model, "figures": figures}
