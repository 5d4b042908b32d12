"""Rows that we wrote ourselves, in the columns of each of the eight benchmarks."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from questions.code_rows import OFFICIAL, STDIN


def rows_of(benchmark: str, count: int = 3) -> list[dict[str, Any]]:
    """So many rows of a benchmark, with questions of their own."""
    return [_row(benchmark, number) for number in range(1, count + 1)]


def _row(benchmark: str, number: int) -> dict[str, Any]:
    text, answer = f"For {benchmark}, find the sum ${number} + {number}$.", str(2 * number)
    match benchmark:
        case "aime24":
            return {
                "id": number,
                "problem": text,
                "solution": f"It is {answer}.",
                "answer": answer,
                "url": "https://example.org",
                "year": "2024",
            }
        case "aime25":
            return {"problem": text, "answer": answer, "id": str(number)}
        case "hmmt25":
            return {"problem_idx": number, "problem": text, "answer": answer, "problem_type": ["Algebra"]}
        case "amobench":
            return {
                "question_id": number,
                "prompt": text,
                "solution": f"It is {answer}.",
                "answer": f"$\\boxed{{{answer}}}$",
                "answer_type": "number",
            }
        case "openr1math":
            return {
                "problem": text,
                "solution": f"It is {answer}.",
                "answer": answer,
                "problem_type": "Algebra",
                "question_type": "math-word-problem",
                "source": "ours",
                "uuid": f"uuid-{number}",
                "generations": ["<think>"],
            }
        case "math500":
            return {
                "problem": text,
                "solution": f"It is {answer}.",
                "answer": answer,
                "subject": "Algebra",
                "level": 1,
                "unique_id": f"test/algebra/{number}.json",
            }
        case "codeforces":
            statement = f"Double the number $n$, in variant {number} of this problem."
            return OFFICIAL | {"id": f"{number}/A", "description": statement}
        case "livecodebench":
            statement = f"Double the number.\n\nVariant {number}."
            return STDIN | {"question_id": f"abc{number}", "question_content": statement}
    raise ValueError(benchmark)


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """One row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
