"""Grade mathematical answers: integers by value, everything else through math-verify.

What is graded is the content of the last `\\boxed{...}`. A response without a box is graded only if it
states its answer in words ("the final answer is ..."); a number that merely occurs is no answer.
Source: https://github.com/huggingface/Math-Verify (0.9).
"""

import logging
import re
from functools import lru_cache
from typing import Any

from sdzero.questions.question import Question
from sdzero.verify.boxed import has_box, last_boxed
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Canary

_TUPLE = re.compile(r"\(([^(),]+(?:,[^(),]+)+)\)")
_INTEGER = re.compile(r"([+-]?)0*([0-9]+|[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+)")
_ANNOUNCED = re.compile(r"answer\b[^.\n]{0,60}?(?:\bis\b(?!\s+not\b)|:|=)", re.IGNORECASE)
_DELIMITERS = (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"))
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textrm|mathrm|mbox)\{([^{}]*)\}")
_WORDS = re.compile(r"(?=.*[A-Za-z]{3})[A-Za-z][A-Za-z' -]*")
_FINAL_STOP = re.compile(r"(?<!\\)(?<!\\right)[.,;]\Z")
_ANSWER_LENGTH = 1000


class MathVerifier:
    """Compares a response's final answer with `question.answer`, which may stand in `$` or `\\boxed{}`.

    math-verify's own time-outs are off: they need signals and stop no C code. Use it in a VerifierPool.
    """

    name = "math"

    def __init__(self) -> None:
        # It warns, once in every process, that somebody else must keep the time. The pool does.
        for module in ("parser", "grader"):
            logging.getLogger(f"math_verify.{module}").setLevel(logging.ERROR)
        # The first call imports sympy and compiles expressions; that is not any response's time.
        _equal("1/2", "\\frac{1}{2}")
        _extract("The final answer is 2.")

    def grade(self, question: Question, response: str) -> Verdict:
        """`no_answer` if no answer is given, or the last box is empty or never closed."""
        reference = last_boxed(question.answer) or question.answer
        if has_box(response):
            given = last_boxed(response)
            if not given:
                return Verdict(Outcome.NO_ANSWER, "the last box is empty or not closed")
            return _verdict(same_answer(reference, given), given)
        stated = _stated_answer(response)
        if stated is None:
            return Verdict(Outcome.NO_ANSWER, "no box, and no answer stated in words")
        first_line = stated.split("\n")[0].rstrip("*. ")
        if as_integer(_bare(first_line)) or _as_words(_bare(first_line)):
            return _verdict(same_answer(reference, first_line), first_line)
        extracted = _extract(f"The final answer is {stated}")
        if not extracted:
            return Verdict(Outcome.NO_ANSWER, "no box, and nothing to grade in the stated answer")
        import math_verify

        right = math_verify.verify(_parse_reference(_bare(reference)), extracted, timeout_seconds=None)
        return _verdict(right, str(extracted[-1]))

    def canaries(self) -> list[Canary]:
        """Integers, a fraction and a word; right, wrong and no answer."""

        def canary(answer: str, response: str, outcome: Outcome) -> Canary:
            return Canary(Question(f"canary {answer}", "What is the value?", answer), response, outcome)

        return [
            canary("42", "6*7=42\\boxed{42}", Outcome.CORRECT),
            canary("42", "6*7=43\\boxed{43}", Outcome.WRONG),
            canary("42", "There are 42 ways to begin.", Outcome.NO_ANSWER),
            canary("$\\frac{1}{2}$", "So it is \\boxed{0.5}.", Outcome.CORRECT),
            canary("$\\frac{1}{2}$", "So it is \\boxed{\\frac{1}{3}}.", Outcome.WRONG),
            canary("x^2+1", "The final answer is $1+x^2$.", Outcome.CORRECT),
            canary("Paris", "\\boxed{\\text{Pairs}}", Outcome.WRONG),
        ]


def _verdict(right: bool, given: str) -> Verdict:
    if right:
        return Verdict(Outcome.CORRECT)
    return Verdict(Outcome.WRONG, f"the answer given is {given[:200]}")


def same_answer(reference: str, given: str) -> bool:
    """Whether two answers (the contents of boxes) are the same; may run long, see the class."""
    reference, given = _bare(reference), _bare(given)
    whole_reference, whole_given = as_integer(reference), as_integer(given)
    if whole_reference is not None and whole_given is not None:
        return whole_reference == whole_given
    point_reference, point_given = as_integers(reference), as_integers(given)
    if point_reference is not None and point_given is not None:
        return point_reference == point_given
    reference_words, given_words = _as_words(reference), _as_words(given)
    # math-verify reads plain words as products of letters, in which "Pairs" equals "Paris".
    if reference_words is not None and given_words is not None:
        return reference_words == given_words
    return _equal(reference, given)


def as_integer(text: str) -> str | None:
    """A plain integer (optional sign, thousands commas) in one form, as text; None for anything else.

    Text, because Python refuses to convert integers of more than 4300 digits.
    """
    match = _INTEGER.fullmatch(text)
    if match is None:
        return None
    digits = re.sub(r"[^0-9]", "", match.group(2)).lstrip("0") or "0"
    return f"-{digits}" if match.group(1) == "-" and digits != "0" else digits


def as_integers(text: str) -> list[str] | None:
    """A tuple of plain integers such as `(2, -7)`, each in one form; None for anything else.

    Only saves time: math-verify finds the same, in tens of milliseconds.
    """
    match = _TUPLE.fullmatch(text)
    if match is None:
        return None
    parts = [as_integer(part.strip()) for part in match.group(1).split(",")]
    known = [part for part in parts if part is not None]
    return known if len(known) == len(parts) else None


def _as_words(text: str) -> str | None:
    """Words in one form, if the text is nothing else and has one of three letters or more."""
    plain = " ".join(_TEXT_COMMAND.sub(r"\1", text).split())
    return plain.casefold() if _WORDS.fullmatch(plain) else None


def _bare(text: str) -> str:
    """An answer without the dollar signs around it and without a full stop."""
    text = text.strip()
    for opening, closing in _DELIMITERS:
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            inside = text[len(opening) : -len(closing)]
            if opening not in inside:
                text = inside.strip()
                break
    return _FINAL_STOP.sub("", text).strip() or text


def _stated_answer(response: str) -> str | None:
    """What follows the last "answer is", "answer:" or "answer ="; None if nothing is announced."""
    last = None
    for last in _ANNOUNCED.finditer(response):  # noqa: B007
        pass
    if last is None:
        return None
    return response[last.end() : last.end() + _ANSWER_LENGTH].lstrip(" \n\t:=*")


def final_answer(response: str) -> str | None:
    """The answer of a response as it stands there, quickly; None if there is none to compare.

    It is the content of the last box. Without a box only a stated answer counts whose end is plain: an
    integer, words, or a formula between dollar signs (or the like) on a line of its own.
    """
    if has_box(response):
        return last_boxed(response) or None
    stated = _stated_answer(response)
    if stated is None:
        return None
    first_line = stated.split("\n")[0].rstrip("*. ")
    bare = _bare(first_line)
    in_delimiters = bare != _FINAL_STOP.sub("", first_line.strip()).strip()
    return bare if as_integer(bare) or _as_words(bare) or in_delimiters else None


def _extract(stated: str) -> list[Any]:
    """math-verify's extraction, only right after the words that announce an answer."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    anchored = [
        LatexExtractionConfig(try_extract_without_anchor=False, boxed_match_priority=-1),
        ExprExtractionConfig(try_extract_without_anchor=False),
    ]
    parsed: list[Any] = parse(stated, anchored, fallback_mode="no_fallback", parsing_timeout=None)
    return parsed


@lru_cache(maxsize=1024)
def _parse_reference(reference: str) -> list[Any]:
    from math_verify import parse

    parsed: list[Any] = parse(f"\\boxed{{{reference}}}", parsing_timeout=None)
    return parsed


def _equal(reference: str, given: str) -> bool:
    import math_verify

    parsed = math_verify.parse(f"\\boxed{{{given}}}", parsing_timeout=None)
    # The order matters to math-verify: an answer may be an equation or interval of the reference.
    return bool(math_verify.verify(_parse_reference(reference), parsed, timeout_seconds=None))
