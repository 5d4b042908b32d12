"""The token view's data: small enough for thousands of responses in one page.

The list needs a line a response: question, verdict, phrase, how much the Reviser found. What is needed only
once a response is looked at (its tokens, divergences, alternatives) is JSON that is deflated and written in
base64, a string a response; the page inflates the one that it shows. Tokens' texts stand once, in
`vocabulary`. Numbers are integers: thousandths of nats, and tenths of per mille of probability.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

from sdzero.report.source import RunFacts

NATS, PROBABILITY = 1_000, 10_000
SMALLEST = 0.001
"""Alternatives with less probability are left out, but for the likeliest."""


class Vocabulary:
    """Texts by number, each once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a text; a new one gets the next."""
        if text not in self._numbers:
            self._numbers[text] = len(self.texts)
            self.texts.append(text)
        return self._numbers[text]


def token_data(runs: Sequence[RunFacts]) -> dict[str, Any]:
    """The data of all responses of all runs, those first in which the Reviser found most to change."""
    vocabulary, phrases = Vocabulary(), Vocabulary()
    found = []
    for run in runs:
        known = {int(token): text for token, text in run.vocabulary.items()}
        for row in run.tokens:
            total = sum(row["divergence"])
            found.append(
                {
                    "q": row["question"],
                    "run": run.name if len(runs) > 1 else "",
                    "v": row["outcome"],
                    "r": row["reward"],
                    "p": phrases.number(row["phrase"]),
                    "x": row["text"],
                    "n": len(row["divergence"]),
                    "s": round(total, 3),
                    "m": round(max(row["divergence"]), 3),
                    "z": _packed(row, known, vocabulary),
                }
            )
    found.sort(key=lambda one: (-one["s"], one["q"]))
    return {"vocabulary": vocabulary.texts, "phrases": phrases.texts, "responses": found}


def _packed(row: dict[str, Any], known: dict[int, str], vocabulary: Vocabulary) -> str:
    def side(view: dict[str, Any]) -> dict[str, Any]:
        alternatives = [
            [
                value
                for place, (token, p) in enumerate(zip(ids, probabilities, strict=True))
                if place == 0 or p >= SMALLEST
                for value in (vocabulary.number(known[token]), round(PROBABILITY * p))
            ]
            for ids, probabilities in zip(view["ids"], view["probabilities"], strict=True)
        ]
        return {"a": alternatives, "t": [round(PROBABILITY * p) for p in view["target"]]}

    data = {
        "t": [vocabulary.number(text) for text in row["pieces"]],
        "d": [round(NATS * value) for value in row["divergence"]],
        "s": side(row["student"]),
        "r": side(row["reviser"]),
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode("ascii")


def script_json(data: Any) -> str:
    """JSON that may stand in a script block: nothing in it can end the block or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
