"""A sample of verdicts for a person to check: some of every kind, each with what was graded.

It is made from the batches that an evaluation left in the run folder; nothing is sampled or graded again.
`evaluate/NAME/audit.txt` is for reading and ticking off, `audit.jsonl` has the same in full, for programs.
"""

import re
import textwrap
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from rich.console import Console

from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.questions.programs import METADATA_KEY, AssertionTests, StdioTests, task_of
from sdzero.questions.question import Question
from sdzero.rollout.engine import seed_of
from sdzero.run_context import RunContext
from sdzero.run_dir import RunDir
from sdzero.verify.boxed import last_boxed
from sdzero.verify.fenced import last_program
from sdzero.verify.verdict import Outcome, Verdict

QUESTION_CHARACTERS = 1000
RESPONSE_CHARACTERS = 1500
GRADED_CHARACTERS = 4000
TEST_CHARACTERS = 400
"""How much of each is shown; audit.jsonl has all of it."""

_TICKED = re.compile(r"^\[[^\]\n]\]", re.MULTILINE)
_TEST = re.compile(r"test (\d+):")


@dataclass(frozen=True)
class Stored:
    """A response of an evaluation as its batch has it. `index` tells several for one question apart."""

    question: Question
    index: int
    text: str
    verdict: Verdict


def print_audits(context: RunContext, names: Iterable[str], count: int, console: Console) -> None:
    """Make and print the audit of each model, by the name that it was scored under; see `audit`."""
    files = []
    for name in names:
        text = audit(context, name, count)
        console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        files.append(context.run.path(f"evaluate/{name}/audit.txt"))
    for file in files:
        context.report(f"audit: {file}")


def audit(context: RunContext, name: str, count: int) -> str:
    """Write the audit of the model that was scored as `name`, and return its text.

    It has `count` verdicts, or at least one of each kind that occurs. Raises UserError if the model was not
    scored here, if the questions are others by now, and if an audit that somebody ticked off would be lost.
    """
    if count < 1:
        raise UserError(f"{count} verdicts cannot be shown", "--audit", "ask for 1 or more")
    questions = getattr(context.sets, context.recipe.evaluate.on)
    stored = stored_responses(context.run, name, {one.id: one for one in questions}, context.roles)
    chosen = choose(stored, count, context.recipe.seed)
    verifier = context.recipe.verifier.name
    shown = [(number, one, graded_part(verifier, one)) for number, one in enumerate(chosen, start=1)]
    text = "\n".join([_summary(name, stored, chosen), "", *(_entry(*entry) for entry in shown)])
    file = f"evaluate/{name}/audit.txt"
    same = _is_there(context.run, file, text)
    context.run.write_jsonl(f"evaluate/{name}/audit.jsonl", [_row(*entry) for entry in shown])
    if not same:
        context.run.write_text(file, text)
    return text


def stored_responses(run: RunDir, name: str, questions: Mapping[str, Question], roles: Roles) -> list[Stored]:
    """All responses of an evaluation, in its order. Raises UserError as `audit` does."""
    folder = run.path(f"evaluate/{name}/responses")
    found = []
    for file in sorted(folder.glob("batch-*.jsonl")):
        for row in run.read_jsonl(str(file.relative_to(run.root))):
            if row["question"] not in questions:
                raise UserError(
                    f"a stored batch holds a response to question {row['question']}, which is not asked here",
                    str(file),
                    "use the data and the recipe that the run was made with",
                )
            verdict = Verdict(Outcome(row["outcome"]), row["detail"])
            text = roles.decode(row["token_ids"])
            found.append(Stored(questions[row["question"]], row["index"], text, verdict))
    if not found:
        raise UserError("no model was scored under this name", str(folder), "run `sdzero evaluate` first")
    return found


def choose(stored: Sequence[Stored], count: int, seed: int) -> list[Stored]:
    """A sample that is spread evenly over the outcomes that occur, and within one over the questions.

    It depends on nothing but the arguments. An outcome with fewer responses than its share gives all of them,
    and the others more. At least one of each outcome is in it. Ordered by outcome.
    """
    by_outcome = {
        outcome: _over_questions([one for one in stored if one.verdict.outcome is outcome], seed)
        for outcome in Outcome
    }
    # Turn by turn, each outcome gives its next one.
    turns = zip_longest(*(own for own in by_outcome.values() if own))
    first, *others = [[one for one in turn if one is not None] for turn in turns]
    taken = [*first, *(one for turn in others for one in turn)][: max(count, len(first))]
    return [one for outcome in Outcome for one in taken if one.verdict.outcome is outcome]


def _over_questions(stored: Sequence[Stored], seed: int) -> list[Stored]:
    """The responses in an order of chance in which every question comes once before any comes again."""
    by_question: dict[str, list[Stored]] = defaultdict(list)
    for one in sorted(stored, key=lambda one: seed_of(seed, "audit", one.question.id, one.index)):
        by_question[one.question.id].append(one)
    return [one for turn in zip_longest(*by_question.values()) for one in turn if one is not None]


def graded_part(verifier: str, stored: Stored) -> str | None:
    """The part of a response that the verifier graded; None if there is none, or nobody can tell."""
    if stored.verdict.outcome is Outcome.TRUNCATED:
        return None
    if verifier == "code" and METADATA_KEY in stored.question.metadata:
        return last_program(stored.text, task_of(stored.question.metadata, stored.question.id).language)
    if verifier == "puzzle":
        from sdzero.verify.puzzle import extract_answer

        return extract_answer(stored.text) or None
    return last_boxed(stored.text) if verifier == "math" else None


def _summary(name: str, stored: Sequence[Stored], chosen: Sequence[Stored]) -> str:
    every, shown = (Counter(one.verdict.outcome for one in ones) for ones in (stored, chosen))
    kinds = ", ".join(
        f"{shown[outcome]} of {every[outcome]} {outcome}" for outcome in Outcome if every[outcome]
    )
    questions = len({one.question.id for one in stored})
    return (
        f"Audit of {name}: {_counted(stored, 'response')} to {questions} questions; shown are {kinds}.\n"
        "Is each verdict right? Tick off with [x]; nothing reads the ticks, and nothing overwrites them."
    )


def _entry(number: int, one: Stored, graded: str | None) -> str:
    """One verdict for a person."""
    question, verdict = one.question, one.verdict
    kind = f" ({question.kind})" if question.kind else ""
    lines = [
        f"[ ] {number}. {verdict.outcome}{f': {visible(verdict.detail)}' if verdict.detail else ''}",
        f"    question {visible(question.id)}{kind}, response {one.index}",
        _block(_head(question.text, QUESTION_CHARACTERS)),
        f"  reference: {_reference(question)}",
        *_test(question, verdict.detail),
        "  response:",
        _block(_tail(one.text, RESPONSE_CHARACTERS)),
    ]
    if graded is None:
        lines.append(f"  graded: {_why_nothing(verdict)}")
    else:
        lines += ["  graded:", _block(_head(graded, GRADED_CHARACTERS))]
    return "\n".join(lines) + "\n"


def _why_nothing(verdict: Verdict) -> str:
    if verdict.outcome is Outcome.TRUNCATED:
        return "nothing; the length limit cut the response"
    return "nothing" if verdict.outcome is Outcome.NO_ANSWER else "not known for this verifier and response"


def _row(number: int, one: Stored, graded: str | None) -> dict[str, Any]:
    return {
        "number": number,
        "outcome": str(one.verdict.outcome),
        "detail": one.verdict.detail,
        "question": one.question.id,
        "kind": one.question.kind,
        "index": one.index,
        "text": one.question.text,
        "answer": one.question.answer,
        "response": one.text,
        "graded": graded,
    }


def _reference(question: Question) -> str:
    """The answer, or which tests there are."""
    if METADATA_KEY not in question.metadata:
        return visible(_head(question.answer, TEST_CHARACTERS))
    tests = task_of(question.metadata, f"question {question.id}").tests
    if isinstance(tests, AssertionTests):
        return f"assertions that call {', '.join(tests.names)}"
    if isinstance(tests, StdioTests):
        checked = " and a checker" if tests.checker else ""
        return f"{_counted(tests.cases, 'test')} of input and output{checked}"
    return f"{_counted(tests.cases, 'call')} of {tests.entry}"


def _counted(items: Sequence[object], what: str) -> str:
    return f"{len(items)} {what}{'' if len(items) == 1 else 's'}"


def _test(question: Question, detail: str) -> list[str]:
    """The test that a verdict on a program names: what it reads and what it should write."""
    named = _TEST.match(detail)
    if named is None or METADATA_KEY not in question.metadata:
        return []
    tests = task_of(question.metadata, f"question {question.id}").tests
    number = int(named[1])
    if not isinstance(tests, StdioTests) or not 1 <= number <= len(tests.cases):
        return []
    case = tests.cases[number - 1]
    return [
        f"  test {number} reads:",
        _block(_head(case.input, TEST_CHARACTERS)),
        "  and should be answered with:",
        _block(_head(case.output, TEST_CHARACTERS)),
    ]


def _head(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]}\n[... {len(text) - most:,} characters more]"


def _tail(text: str, most: int) -> str:
    return text if len(text) <= most else f"[{len(text) - most:,} characters before ...]\n{text[-most:]}"


def _block(text: str) -> str:
    # One by one: splitlines would also split at characters that only some programs show as line ends.
    return textwrap.indent("\n".join(map(visible, text.strip("\n").split("\n"))), "    | ", lambda line: True)


def visible(text: str) -> str:
    """The text on one line, with characters that steer a terminal, or are not seen, spelt out."""
    return "".join(
        character
        if character == "\t" or unicodedata.category(character)[0] != "C"
        else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


def _is_there(run: RunDir, file: str, text: str) -> bool:
    """Whether the file has this audit already, ticked or not. Raises UserError for ticks in another one."""
    if not run.path(file).exists():
        return False
    old = run.path(file).read_text(encoding="utf-8", errors="replace")
    if _TICKED.sub("[ ]", old) == text:
        return True
    if any(mark.group() != "[ ]" for mark in _TICKED.finditer(old)):
        raise UserError(
            "an audit that somebody ticked off would be lost: this one has other verdicts in it",
            str(run.path(file)),
            "move the file away, or ask for as many verdicts as before",
        )
    return False
