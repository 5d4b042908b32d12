"""How responses read: hedges, talk of revision, attempts, length.

Self-distillation can teach a model to sound sure and cost it correctness on other problems (arXiv
2603.24472), so the rate of words that voice doubt is watched beside the scores. Works on decoded texts.
"""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

HEDGES = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)
"""The ten words by which arXiv 2603.24472 (section 3) counts voiced doubt."""

REVISIONS = (
    "however",
    "let me",
    "mistake",
    "wrong",
    "not correct",
    "incorrect",
    "recheck",
    "double-check",
    "reconsider",
    "rephrase",
    "start over",
    "redo",
)
"""Phrases of somebody who goes back over their work: our own list. It covers the default control phrases,
of which one sentence may count several times."""

_BOX = re.compile(r"\\f?boxed\s*\{")


def _pattern(phrases: Sequence[str]) -> re.Pattern[str]:
    """Any of the phrases as whole words, in either case; longer ones first, so that each counts once."""
    words = sorted(phrases, key=len, reverse=True)
    # A hyphen belongs to the word: `double-check` is no `check`.
    return re.compile(r"(?<![\w-])(?:" + "|".join(map(re.escape, words)) + r")(?![\w-])", re.IGNORECASE)


_HEDGES, _REVISIONS = _pattern(HEDGES), _pattern(REVISIONS)


def hedges(text: str) -> Counter[str]:
    """How often each of `HEDGES` stands in a text, as a whole word, in upper or lower case."""
    return Counter(found.lower() for found in _HEDGES.findall(text))


def revisions(text: str) -> Counter[str]:
    """How often each of `REVISIONS` stands in a text, in the same way."""
    return Counter(found.lower() for found in _REVISIONS.findall(text))


def attempts_in(text: str) -> int:
    """How many answers a response gives: `\\boxed{` or `\\fboxed{`, closed or not."""
    return len(_BOX.findall(text))


def style(texts: Sequence[str], tokens: Sequence[int]) -> dict[str, Any]:
    """The style of responses, from their texts and their lengths in tokens; JSON-like.

    `hedges` and `revisions` each have `per_1000_tokens`, `share` (of responses with at least one) and
    `words` (counts, the most frequent first). `attempts` is the mean number of boxed answers a response,
    `several_attempts` the share of responses with more than one, `mean_tokens` the mean length.

    Raises ValueError for no responses, for a negative length, and when texts and lengths differ in number.
    """
    if len(texts) != len(tokens):
        raise ValueError(f"{len(texts)} texts but {len(tokens)} lengths")
    if not texts:
        raise ValueError("there are no responses")
    if min(tokens) < 0:
        raise ValueError("a response has a negative length")
    attempts = [attempts_in(text) for text in texts]
    return {
        "responses": len(texts),
        "mean_tokens": statistics.fmean(tokens),
        "attempts": statistics.fmean(attempts),
        "several_attempts": sum(count > 1 for count in attempts) / len(texts),
        "hedges": _counted([hedges(text) for text in texts], sum(tokens)),
        "revisions": _counted([revisions(text) for text in texts], sum(tokens)),
    }


def _counted(counts: Sequence[Counter[str]], tokens: int) -> dict[str, Any]:
    words: Counter[str] = sum(counts, Counter())
    return {
        "per_1000_tokens": 1000 * words.total() / tokens if tokens else 0.0,
        "share": sum(bool(own) for own in counts) / len(counts),
        "words": dict(words.most_common()),
    }
