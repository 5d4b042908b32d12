"""Run folders for tests of the page, written by hand: no model is needed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HOSTILE = (
    '</script><script>window.owned = 1</script><img src=x onerror="window.owned = 1"><!--\x1b[31mred\u202e'
)
"""What a model could write to break out of the page or of the terminal."""


def scores(values: dict[str, list[int]]) -> dict[str, Any]:
    """`evaluate/NAME.json` from each question's rewards."""
    means = [sum(own) / len(own) for own in values.values()]
    average = sum(means) / len(means)
    return {
        "evaluation": {
            "avg": average,
            "se": 0.02,
            "k": 2,
            "questions": len(values),
            "pass_at_k": average,
            "mean_tokens": 20.0,
            "verdicts": {"correct": 3, "wrong": 5},
        },
        "per_question": values,
        "revision": {
            "first": 0.4,
            "revised": 0.6,
            "correction_rate": 0.5,
            "regression_rate": 0.25,
            "first_tokens": 20.0,
            "revised_tokens": 19.0,
        },
    }


def token_row(
    question: str,
    pieces: Sequence[str],
    divergence: Sequence[float],
    outcome: str = "wrong",
    text: str | None = None,
) -> dict[str, Any]:
    """A line of `report/tokens.jsonl`: at every token the student would write 1 or 2, the Reviser 2 or 1."""
    length = len(pieces)
    reward = int(outcome == "correct")
    return {
        "question": question,
        "text": f"What is {question}?" if text is None else text,
        "index": 0,
        "source": "evaluate/srt/responses/batch-00000.jsonl",
        "outcome": outcome,
        "reward": reward,
        "phrase": "Let me rephrase the above solution." if reward else "Wait, start over.",
        "token_ids": [1] * length,
        "pieces": list(pieces),
        "divergence": list(divergence),
        "student": {
            "ids": [[1, 2]] * length,
            "probabilities": [[0.9, 0.0999]] * length,
            "target": [0.9] * length,
        },
        "reviser": {
            "ids": [[2, 1]] * length,
            "probabilities": [[0.97, 0.03]] * length,
            "target": [0.03] * length,
        },
    }


def write_run(
    folder: Path,
    tokens: Sequence[dict[str, Any]] = (),
    better: bool = True,
    versions: dict[str, str] | None = None,
) -> Path:
    """A finished run with 40 questions; SD-Zero solves all that the base model does not if it is `better`."""
    base = {f"q{number}": [number % 2, 0] for number in range(40)}
    own = {q: [1, 1] for q in base} if better else dict(base)
    found = {"base": scores(base), "srt": scores(own), "sdzero": scores(own)}

    def interval(name: str) -> dict[str, Any]:
        gain = own != (base if name == "base" else own)
        return {
            "difference": 0.75 if gain else 0.0,
            "interval": [0.6, 0.9] if gain else [-0.1, 0.1],
            "p": 0.001,
        }

    stage = {
        "responses": 10,
        "sampled_tokens": 200,
        "trained_tokens": 100,
        "teacher_tokens": 50,
        "seconds": 3.0,
        "joules": None,
    }
    results = {
        "schema": 1,
        "method": "sdzero",
        "seed": 0,
        "model": "tiny",
        "task": "demo",
        "on": "test",
        "evaluations": {name: one["evaluation"] for name, one in found.items()},
        "revision": {name: one["revision"] for name, one in found.items()},
        "differences": {name: interval(name) for name in ("base", "srt")},
        "responses": {"base": 0, "srt": 10, "sdzero": 20},
        "seconds": {"base": 0.0, "srt": 3.0, "sdzero": 6.0},
        "budget": {
            "responses": 20,
            "sampled_tokens": 400,
            "trained_tokens": 200,
            "seconds": 6.0,
            "joules": None,
            "by_stage": {"collect": stage, "distill": stage},
        },
        "divergence": {"kind": "reverse", "support": "full"},
        "versions": versions or {"python": "3.11"},
        "recipe_sha256": "0" * 64,
    }
    manifest = {
        "schema": 1,
        "recipe_sha256": "0" * 64,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"python": "3.11", "torch": "2.13.0"},
        "seed": 0,
    }
    write(folder / "manifest.json", manifest)
    (folder / "recipe.yaml").write_text("name: demo\nmodel: {path: tiny}\n")
    write(folder / "results.json", results)
    for name, one in found.items():
        write(folder / f"evaluate/{name}.json", one)
    write(folder / "stages/distill.json", {"stage": "distill", "info": {"teacher": "abcd", "syncs": 1}})
    steps = [
        {
            "part": 0,
            "step": step,
            "reward": step / 20,
            "tokens": 30 - step,
            "entropy": 0.1,
            "divergence_r0": 0.2,
            "divergence_r1": None if step < 3 else 0.1,
            "teacher_syncs": int(step >= 5),
        }
        for step in range(1, 11)
    ]
    write_rows(folder / "distill/log.jsonl", steps)
    if tokens:
        write_rows(folder / "report/tokens.jsonl", tokens)
        write(folder / "report/vocabulary.json", {"1": "one", "2": "two"})
        curve = [
            {"tokens": tenth / 10, "divergence": {"mean": 1 - (1 - tenth / 10) ** 3}}
            for tenth in range(1, 11)
        ]
        group = {"curve": curve}
        write(
            folder / "report/localization.json",
            {"student": "srt", "reviser": "srt", "divergence": "reverse", "r0": group, "r1": group},
        )
    return folder


def write(file: Path, data: Any) -> None:
    """A JSON file, and the folders above it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))


def write_rows(file: Path, rows: Sequence[Any]) -> None:
    """A file of one JSON value a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
