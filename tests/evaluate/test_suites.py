"""The table of benchmarks, the paper's figures, scores on several benchmarks, contamination."""

import re
from pathlib import Path
from typing import get_args

import pytest

from evaluate.suite_rows import rows_of
from sdzero.errors import UserError
from sdzero.evaluate.contamination import MOST_QUESTIONS, TrainingTexts, words_of
from sdzero.evaluate.paper_figures import AVERAGE, ORDER, TABLE, model_of, paper_figures
from sdzero.evaluate.stats import t_quantile
from sdzero.evaluate.suite_data import columns_of, copy_command
from sdzero.evaluate.suite_scores import macro, summary
from sdzero.evaluate.suites import BENCHMARKS, SUITES, benchmarks_of
from sdzero.questions.program_rows import ask_for_program
from sdzero.questions.programs import METADATA_KEY
from sdzero.questions.question import Question
from sdzero.recipe_suites import SuiteName


def test_a_recipe_may_name_each_suite_and_benchmark() -> None:
    assert set(get_args(SuiteName)) == {*SUITES, *BENCHMARKS}


def test_the_suites_hold_the_papers_benchmarks() -> None:
    assert set(BENCHMARKS) == set(ORDER)
    assert {name: len(own) for name, own in SUITES.items()} == {"paper8": 8, "math6": 6, "code2": 2}
    assert set(SUITES["math6"]) | set(SUITES["code2"]) == set(SUITES["paper8"])
    assert [one.name for one in benchmarks_of("aime25")] == ["aime25"]
    with pytest.raises(UserError) as caught:
        benchmarks_of("aime52")
    assert caught.value.todo == "did you mean `aime25`?"


PAGE = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text()


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_page_tells_of_each_benchmark(name: str) -> None:
    benchmark = BENCHMARKS[name]
    (row,) = re.findall(
        rf"^\| `{name}` \| \[(.+)\]\((.+)\) \| (.+) \| (.+) \| (.+) \| `(.+)` \|$", PAGE, re.MULTILINE
    )
    hub, link, where, count, columns, verifier = row
    assert (hub, link) == (benchmark.hub, f"https://huggingface.co/datasets/{benchmark.hub}")
    assert where == ", ".join(part for part in (benchmark.subset, benchmark.split) if part)
    expected = benchmark.expected
    assert count == (
        "not known" if expected is None else f"{expected:,}{' held out' * bool(benchmark.held_out)}"
    )
    assert verifier == benchmark.verifier
    if verifier == "math":
        assert columns == ", ".join(f"`{column}`" for column in columns_of(benchmark))
    assert copy_command(benchmark, "benchmarks") in PAGE


@pytest.mark.parametrize("name", BENCHMARKS)
def test_our_rows_have_the_columns_of_the_table(name: str) -> None:
    (row,) = rows_of(name, 1)
    assert {column.split("|")[0] for column in columns_of(BENCHMARKS[name])} <= set(row)


def test_each_row_of_the_paper_has_its_average() -> None:
    for rows in TABLE.values():
        for *figures, average in rows.values():
            assert len(figures) == len(ORDER)
            assert sum(figures) / len(figures) == pytest.approx(average, abs=0.0501)


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen3-4B-Instruct"),
        ("/models/qwen3-4b-instruct", "Qwen3-4B-Instruct"),
        ("allenai/Olmo-3-7B-Instruct", "Olmo-3-7B-Instruct"),
        ("allenai/Olmo-3-7B-Instruct-SFT", None),
        ("Qwen/Qwen3-4B", None),
        ("tiny", None),
    ],
)
def test_the_papers_models_are_known_by_name(path: str, model: str | None) -> None:
    assert model_of(path) == model
    assert (paper_figures(path, ["aime24"]) is None) == (model is None)


def test_the_papers_figures_of_a_suite() -> None:
    path = "Qwen/Qwen3-4B-Instruct-2507"
    whole, code = paper_figures(path, ORDER), paper_figures(path, SUITES["code2"])
    assert whole is not None
    assert code is not None
    assert whole["figures"]["sdzero"]["aime24"] == pytest.approx(0.683)
    assert whole["figures"]["sdzero"][AVERAGE] == pytest.approx(0.603)
    assert code["figures"]["base"] == pytest.approx(
        {"codeforces": 0.48, "livecodebench": 0.618, AVERAGE: 0.549}
    )


def scored(**per_question: list[int]) -> dict[str, object]:
    means = [sum(own) / len(own) for own in per_question.values()]
    mean = sum(means) / len(means)
    spread = sum((one - mean) ** 2 for one in means) / max(len(means) - 1, 1)
    error = (spread / len(means)) ** 0.5 if len(means) > 1 else None
    return {"evaluation": {"avg": mean, "se": error}, "per_question": per_question}


def test_scores_with_and_without_contaminated_questions() -> None:
    found = summary(scored(a=[1, 1], b=[1, 0], c=[0, 0]), {"a"})
    assert found["avg"] == pytest.approx(0.5)
    half = t_quantile(0.95, 2) * 0.5 / 3**0.5
    assert half > 0.5, "the interval reaches over both ends of a rate"
    assert found["interval"] == [0.0, 1.0]
    assert found["clean"]["avg"] == pytest.approx(0.25)
    assert found["clean"]["questions"] == 2
    assert summary(scored(a=[1], b=[0]), {"a", "b"})["clean"] is None
    assert summary(scored(a=[1]), set())["interval"] is None


def test_the_average_weighs_benchmarks_alike() -> None:
    one = summary(scored(**{f"q{i}": [i % 2] for i in range(100)}), set())
    two = summary(scored(**{f"q{i}": [0] for i in range(10)}), set())
    found = macro({"one": one, "two": two})
    assert found["avg"] == pytest.approx(0.25)
    half = 1.959964 * one["se"] / 2
    assert found["interval"] == pytest.approx([0.25 - half, 0.25 + half], abs=1e-6)
    assert found["clean_avg"] == found["avg"]
    dirty = summary(scored(a=[1], b=[1]), {"a", "b"})
    assert macro({"one": one, "two": dirty})["clean_avg"] is None
    assert macro({"one": one, "two": summary(scored(a=[1]), set())})["interval"] is None


LONG = "Let n be the least number of coins, such that Anna can pay every sum up to {}"


def asked(*texts: str, program: bool = False) -> list[Question]:
    metadata = {METADATA_KEY: {}} if program else {}
    return [Question(f"q{i}", text, "1", metadata=metadata) for i, text in enumerate(texts)]


def test_the_same_text_is_found_exactly() -> None:
    texts = TrainingTexts({"n1": asked("other"), "n2": asked("2 +  3 = ?"), "tuning": []})
    (match,) = texts.matches(asked("2 + 3 = ?", "2 - 3 = ?", "2 + 3"))
    assert (match.question, match.how, match.set, match.training) == ("q0", "exact", "n2", "q0")


def test_thirteen_words_in_common_are_found_whatever_the_case_and_punctuation() -> None:
    texts = TrainingTexts(
        {
            "tuning": asked(
                "A new problem. LET $n$ be the least number of coins (such that Anna"
                " can) pay, in cash, every sum."
            )
        }
    )
    (match,) = texts.matches(asked(LONG.format(7), "Let n be the least number of coins, such that Anna can"))
    assert (match.question, match.how, match.set) == ("q0", "overlap", "tuning")
    assert match.shared == "let n be the least number of coins such that anna can pay"[: len(match.shared)]
    assert len(match.shared.split()) == 13
    assert words_of("A $x^{2}$-axis,\n twice") == ["a", "x2axis", "twice"]


def test_a_phrase_of_many_training_questions_is_no_contamination() -> None:
    many = [f"{LONG.format('N')} and then number {i}" for i in range(MOST_QUESTIONS + 1)]
    assert len(TrainingTexts({"n1": asked(*many[:-1])}).matches(asked(LONG.format("N")))) == 1
    assert TrainingTexts({"n1": asked(*many)}).matches(asked(LONG.format("N"))) == []


def test_the_instruction_of_program_questions_is_not_compared() -> None:
    mine, yours = (f"{text}\n\n{ask_for_program('python')}" for text in ("Add two numbers.", "Sort them."))
    assert TrainingTexts({"n1": asked(mine, program=True)}).matches(asked(yours, program=True)) == []
    other = f"Add two numbers.\n\n{ask_for_program('cpp')}"
    (match,) = TrainingTexts({"n1": asked(mine, program=True)}).matches(asked(other, program=True))
    assert match.how == "exact", "the same problem in another language"
