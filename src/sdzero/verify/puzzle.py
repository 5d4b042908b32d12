"""Grade puzzles with reasoning-gym's own scorers.

The answer of a response is, in this order: the content of the last `\\boxed{...}` (`\\text{...}` around
the whole of it is taken off), else of the last `<answer>...</answer>`, else the last line that is not
blank. A score of 1.0 is correct; reasoning-gym's partial scores are wrong.

Some scorers pass the answer to Python's `eval` or to sympy's parser, which evaluates too. Answers that
could act on the machine (dunder names, calls of builtins such as `exec` and `open`) are therefore wrong
without being scored. That stops accidents; it is no sandbox.
"""

import json
import re
from functools import lru_cache
from typing import Any

from sdzero.questions.puzzles import decode, encode, make_task
from sdzero.questions.question import Question
from sdzero.verify.boxed import last_boxed
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Canary

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_WHOLLY_TEXT = re.compile(r"\\text\{([^{}]*)\}")
_ACTS = re.compile(
    r"__\w+__|\b(?:exec|eval|compile|open|input|breakpoint|exit|quit|getattr|setattr|delattr|globals|locals"
    r"|vars|sympify|lambdify|parse_expr)\s*\("
)


class PuzzleVerifier:
    """Grades questions of the source `reasoning_gym`; other questions raise KeyError."""

    name = "puzzle"

    def __init__(self) -> None:
        # Importing reasoning-gym takes seconds, which are not any response's time.
        make_task("chain_sum", {})

    def grade(self, question: Question, response: str) -> Verdict:
        """`no_answer` if the response is blank or its box or tag is empty."""
        answer = extract_answer(response)
        if not answer:
            return Verdict(Outcome.NO_ANSWER)
        if _ACTS.search(answer):
            return Verdict(Outcome.WRONG, "the answer looks like a program; it was not scored")
        metadata = question.metadata
        task = _task(metadata["task"], json.dumps(metadata["arguments"], sort_keys=True))
        entry = decode(metadata["entry"])
        try:
            score = task.score_answer(answer, entry)
        # Many scorers parse without care; whether the answer or the scorer is at fault is told by
        # whether the scorer can score the reference answer.
        except Exception as fault:
            task.score_answer(entry["answer"], entry)
            return Verdict(Outcome.WRONG, f"the scorer cannot read the answer: {fault}")
        if score == 1.0:
            return Verdict(Outcome.CORRECT)
        return Verdict(Outcome.WRONG, f"scored {score:.3g}")

    def canaries(self) -> list[Canary]:
        """One sum: right, wrong and not answered."""
        entry = make_task("chain_sum", {})[0]
        metadata = {"task": "chain_sum", "arguments": {}, "entry": encode(entry)}
        question = Question("canary", entry["question"], entry["answer"], "chain_sum", metadata)
        return [
            Canary(question, f"So \\boxed{{{entry['answer']}}}", Outcome.CORRECT),
            Canary(question, f"So <answer>1{entry['answer']}</answer>", Outcome.WRONG),
            Canary(question, "\n", Outcome.NO_ANSWER),
        ]


def extract_answer(response: str) -> str:
    """The answer in a response, empty if there is none; the order is told at the top of this file."""
    boxed = last_boxed(response)
    if boxed is not None:
        wholly_text = _WHOLLY_TEXT.fullmatch(boxed)
        return wholly_text.group(1).strip() if wholly_text else boxed
    tagged = _TAGGED.findall(response)
    if tagged:
        return str(tagged[-1]).strip()
    lines = response.strip().splitlines()
    return lines[-1].strip() if lines else ""


@lru_cache(maxsize=256)
def _task(name: str, arguments: str) -> Any:
    return make_task(name, decode(json.loads(arguments)))
