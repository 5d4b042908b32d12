"""The paper's eight benchmarks (arXiv 2604.12002, section 4) as named sets of questions, and suites of them.

What is known of each data set, and from where, stands in docs/benchmarks.md. Imports no torch.
"""

from dataclasses import dataclass, field
from typing import Literal

from sdzero.errors import unknown_name
from sdzero.recipe import FieldMap


@dataclass(frozen=True)
class Benchmark:
    """One benchmark: where its questions are, what their columns mean, and how responses are graded.

    `source` is one of the recipe's sources. `files` are patterns of the hub's files that a local copy needs
    (not the card: it names subsets that are not copied, and `datasets` opens no folder that lacks the first).
    `expected` is how many questions there should be, None where that could not be found out. `held_out` is
    how many questions of a training set make the benchmark: the first of a ranking by hash (`HELD_OUT_SEED`).
    """

    name: str
    title: str
    verifier: Literal["math", "code"]
    hub: str
    split: str
    files: tuple[str, ...]
    subset: str | None = None
    source: Literal["huggingface", "codeforces", "livecodebench"] = "huggingface"
    fields: FieldMap = field(default_factory=FieldMap)
    languages: tuple[Literal["python", "cpp"], ...] = ("python",)
    expected: int | None = None
    held_out: int | None = None
    faulty: Literal["error", "drop"] = "error"


HELD_OUT_SEED = 0
"""Seed of the ranking that held-out questions are the first of. It is `data.split_seed` of the GPU recipes,
so that there the held-out questions are the recipe's own test questions."""

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            name="aime24",
            title="AIME24",
            verifier="math",
            hub="HuggingFaceH4/aime_2024",
            split="train",
            files=("data/*",),
            fields=FieldMap(question="problem", answer="answer", id="id"),
            expected=30,
        ),
        Benchmark(
            name="aime25",
            title="AIME25",
            verifier="math",
            hub="math-ai/aime25",
            split="test",
            files=("test.jsonl",),
            fields=FieldMap(question="problem", answer="answer", id="id"),
            expected=30,
        ),
        Benchmark(
            name="hmmt25",
            title="HMMT25 (February)",
            verifier="math",
            hub="MathArena/hmmt_feb_2025",
            split="train",
            files=("data/*",),
            fields=FieldMap(question="problem", answer="answer", id="problem_idx"),
            expected=30,
        ),
        Benchmark(
            name="amobench",
            title="AMO-Bench",
            verifier="math",
            hub="meituan-longcat/AMO-Bench",
            split="test",
            files=("data/*",),
            fields=FieldMap(question="prompt", answer="answer", id="question_id", kind="answer_type"),
            expected=50,
        ),
        Benchmark(
            name="openr1math",
            title="OpenR1-Math (held out)",
            verifier="math",
            hub="open-r1/OpenR1-Math-220k",
            subset="default",
            split="train",
            files=("data/*",),
            fields=FieldMap(question="problem", answer="answer", id="uuid", kind="problem_type"),
            expected=500,
            held_out=500,
            faulty="drop",
        ),
        Benchmark(
            name="math500",
            title="MATH-500",
            verifier="math",
            hub="HuggingFaceH4/MATH-500",
            split="test",
            files=("test.jsonl",),
            fields=FieldMap(question="problem", answer="answer", id="unique_id", kind="subject"),
            expected=500,
        ),
        Benchmark(
            name="codeforces",
            title="Codeforces",
            verifier="code",
            hub="open-r1/codeforces",
            subset="verifiable",
            split="test",
            files=("verifiable/test-*",),
            source="codeforces",
            languages=("python", "cpp"),
            faulty="drop",
        ),
        Benchmark(
            name="livecodebench",
            title="LiveCodeBench",
            verifier="code",
            hub="lighteval/code_generation_lite",
            subset="release_v6",
            split="test",
            files=("release_v6/*",),
            source="livecodebench",
            expected=1055,
        ),
    )
}

SUITES = {
    "paper8": tuple(BENCHMARKS),
    "math6": tuple(name for name, one in BENCHMARKS.items() if one.verifier == "math"),
    "code2": tuple(name for name, one in BENCHMARKS.items() if one.verifier == "code"),
}


def benchmarks_of(suite: str) -> list[Benchmark]:
    """The benchmarks of a suite, or the one of that name. Raises UserError for a name that is neither."""
    names = SUITES.get(suite) or ((suite,) if suite in BENCHMARKS else None)
    if names is None:
        raise unknown_name("suite or benchmark", suite, [*SUITES, *BENCHMARKS], "--suite")
    return [BENCHMARKS[name] for name in names]
