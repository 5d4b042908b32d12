"""Each benchmark from the hub, from a folder and from a file; and every fault that a copy can have."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from evaluate.suite_rows import rows_of, write_jsonl
from sdzero.errors import UserError
from sdzero.evaluate.suite_data import BenchmarkQuestions, copy_command, find_copies, load_benchmark
from sdzero.evaluate.suites import BENCHMARKS, HELD_OUT_SEED, Benchmark
from sdzero.questions.programs import METADATA_KEY
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import normalise, split_questions
from sdzero.recipe import DataSettings


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def from_hub(folder: Path, name: str, patch: pytest.MonkeyPatch) -> BenchmarkQuestions:
    """Through the hub id; a stand-in for the hub has the rows."""
    benchmark, load = BENCHMARKS[name], datasets.load_dataset

    def hub(path: str, **arguments: Any) -> Any:
        if path != benchmark.hub:
            return load(path, **arguments)
        assert (arguments["name"], arguments["split"]) == (benchmark.subset, benchmark.split)
        return datasets.Dataset.from_list(rows_of(name))

    patch.setattr(datasets, "load_dataset", hub)
    return load_benchmark(benchmark)


def from_files(folder: Path, name: str, patch: pytest.MonkeyPatch) -> BenchmarkQuestions:
    """A folder as `copy_command` leaves it."""
    benchmark, copy = BENCHMARKS[name], folder / "copies" / name
    (pattern,) = benchmark.files
    if pattern == "test.jsonl":
        write_jsonl(copy / pattern, rows_of(name))
    else:
        parent = copy / pattern.partition("/")[0]
        parent.mkdir(parents=True)
        file = parent / f"{benchmark.split}-00000-of-00001.parquet"
        datasets.Dataset.from_list(rows_of(name)).to_parquet(str(file))
        assert file.match(pattern)
    return load_benchmark(benchmark, find_copies([benchmark], folder / "copies")[name])


def from_snapshot(folder: Path, name: str, patch: pytest.MonkeyPatch) -> BenchmarkQuestions:
    """The whole of the hub's repository: files of two subsets, and the card that tells them apart."""
    benchmark, copy = BENCHMARKS[name], folder / "copies" / name
    assert benchmark.subset is not None
    card = ["---", "configs:"]
    for subset, rows in (("another", rows_of(name, 9)), (benchmark.subset, rows_of(name))):
        (copy / subset).mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(str(copy / subset / f"{benchmark.split}-0.parquet"))
        card += [f"- config_name: {subset}", "  data_files:", f"  - split: {benchmark.split}"]
        card.append(f"    path: {subset}/*")
    (copy / "README.md").write_text("\n".join([*card, "---", ""]))
    return load_benchmark(benchmark, find_copies([benchmark], folder / "copies")[name])


def from_saved(folder: Path, name: str, patch: pytest.MonkeyPatch) -> BenchmarkQuestions:
    """A folder that `save_to_disk` wrote."""
    benchmark, copy = BENCHMARKS[name], folder / "copies" / name
    rows = datasets.Dataset.from_list(rows_of(name))
    datasets.DatasetDict({benchmark.split: rows}).save_to_disk(str(copy))
    return load_benchmark(benchmark, find_copies([benchmark], folder / "copies")[name])


def from_lines(folder: Path, name: str, patch: pytest.MonkeyPatch) -> BenchmarkQuestions:
    """One JSONL file."""
    write_jsonl(folder / f"copies/{name}.jsonl", rows_of(name))
    return load_benchmark(BENCHMARKS[name], find_copies([BENCHMARKS[name]], folder / "copies")[name])


WAYS = [(name, way) for name in BENCHMARKS for way in (from_hub, from_files, from_saved, from_lines)]
WAYS += [(name, from_snapshot) for name, one in BENCHMARKS.items() if one.subset is not None]


@pytest.mark.parametrize(("name", "way"), WAYS)
def test_each_benchmark_each_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    way: Callable[[Path, str, pytest.MonkeyPatch], BenchmarkQuestions],
) -> None:
    benchmark = BENCHMARKS[name]
    found = way(tmp_path, name, monkeypatch)
    assert len(found.questions) == 3
    if benchmark.verifier == "code":
        assert all(METADATA_KEY in question.metadata for question in found.questions)
        assert {"variant" in q.text.lower() for q in found.questions} == {True}
    else:
        texts = {row[benchmark.fields.question]: row[benchmark.fields.answer] for row in rows_of(name)}
        assert {q.text: q.answer for q in found.questions} == texts
        assert {q.id for q in found.questions} == {
            str(row[benchmark.fields.id or ""]) for row in rows_of(name)
        }
    assert found.place == (
        benchmark.hub if way is from_hub else str(find_copies([benchmark], tmp_path / "copies")[name])
    )
    expected = benchmark.expected
    assert found.surprise == (
        None if expected is None else f"{benchmark.title} has {expected} questions, but {found.place} gives 3"
    )


def loaded(folder: Path, name: str, rows: list[dict[str, Any]], **keys: Any) -> BenchmarkQuestions:
    return load_benchmark(BENCHMARKS[name], write_jsonl(folder / f"{name}.jsonl", rows), **keys)


def refused(folder: Path, name: str, rows: list[dict[str, Any]]) -> UserError:
    with pytest.raises(UserError) as caught:
        loaded(folder, name, rows)
    assert str(caught.value.where).startswith(f"benchmark {name}: ")
    return caught.value


def test_the_right_number_is_no_surprise(tmp_path: Path) -> None:
    assert loaded(tmp_path, "aime24", rows_of("aime24", 30)).surprise is None


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    rows = [{"question": row["problem"], "answer": row["answer"], "id": 1} for row in rows_of("aime24")]
    fault = refused(tmp_path, "aime24", rows)
    assert fault.what == "there is no column `problem`; the columns are: question, answer, id"
    assert "with the columns problem, answer, id" in str(fault.todo)
    fault = refused(tmp_path, "codeforces", [{"title": "no statement"}])
    assert fault.what == "there is no column `description`; the columns are: title"


def test_a_missing_answer_names_its_line(tmp_path: Path) -> None:
    rows = rows_of("math500")
    rows[1]["answer"] = None
    fault = refused(tmp_path, "math500", rows)
    assert fault.what == "the answer in column `answer` is empty"
    assert f"{tmp_path}/math500.jsonl:2" in str(fault.where)
    assert "scored whole" in str(fault.todo)


@pytest.mark.parametrize("name", ["aime25", "livecodebench"])
def test_rows_of_another_split_are_refused(tmp_path: Path, name: str) -> None:
    rows = rows_of(name)
    for number, row in enumerate(rows):
        row["split"] = "train" if number == 2 else "test"
    fault = refused(tmp_path, name, rows)
    assert fault.what == "the row is of split `train`, and the benchmark is split `test`"
    assert "jsonl:3" in str(fault.where) or "row 2" in str(fault.where)
    rows[2]["split"] = "test"
    assert len(loaded(tmp_path, name, rows).questions) == 3


def test_a_folder_of_another_split_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "math500"
    write_jsonl(copy / "train.jsonl", rows_of("math500"))
    with pytest.raises(UserError, match=r"Unknown split .?test.?.*train") as caught:
        load_benchmark(BENCHMARKS["math500"], copy)
    assert "split `test`" in str(caught.value.todo)
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows_of("math500"))}).save_to_disk(
        str(tmp_path / "saved")
    )
    with pytest.raises(UserError, match="no split `test`; the splits are: train"):
        load_benchmark(BENCHMARKS["math500"], tmp_path / "saved")


@pytest.mark.parametrize("name", ["aime24", "openr1math"])
def test_a_benchmark_without_rows_is_refused(tmp_path: Path, name: str) -> None:
    assert refused(tmp_path, name, []).what == "there is no question in the data"


def test_programs_without_tests_leave_nothing(tmp_path: Path) -> None:
    row = rows_of("codeforces")[0] | {"official_tests": [], "examples": []}
    assert refused(tmp_path, "codeforces", [row]).what == "there is no question in the data"


def test_without_a_network_it_is_told_how_to_copy(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_benchmark(BENCHMARKS["openr1math"])
    assert "benchmark openr1math: open-r1/OpenR1-Math-220k" in str(caught.value.where)
    assert copy_command(BENCHMARKS["openr1math"], "DIR") in str(caught.value.todo)
    assert "--suite-data DIR" in str(caught.value.todo)


def test_missing_copies_are_told_all_at_once(tmp_path: Path) -> None:
    both = [BENCHMARKS["aime24"], BENCHMARKS["hmmt25"], BENCHMARKS["aime25"]]
    with pytest.raises(UserError, match="no folder of benchmarks"):
        find_copies(both, tmp_path / "none")
    write_jsonl(tmp_path / "aime25.jsonl", rows_of("aime25"))
    with pytest.raises(UserError, match="no copy of aime24, hmmt25 is here") as caught:
        find_copies(both, tmp_path)
    assert "hf download MathArena/hmmt_feb_2025" in str(caught.value.todo)
    (tmp_path / "aime25").mkdir()
    with pytest.raises(UserError, match=r"two copies: aime25, aime25\.jsonl"):
        find_copies([BENCHMARKS["aime25"]], tmp_path)


def openr1(folder: Path, count: int) -> tuple[Path, DataSettings, Benchmark]:
    """A copy of OpenR1-Math, and data settings as in the recipe for it."""
    file = write_jsonl(folder / "openr1math.jsonl", rows_of("openr1math", count))
    fields = {"question": "problem", "answer": "answer", "id": "uuid", "kind": "problem_type"}
    data = {"source": "jsonl", "path": str(file), "fields": fields, "split_seed": HELD_OUT_SEED}
    settings = DataSettings.model_validate(data | {"n1": 300, "n2": 100, "tuning": 50, "test": 500})
    return file, settings, BENCHMARKS["openr1math"]


def test_the_held_out_part_is_the_recipes_test_set_where_seeds_agree(tmp_path: Path) -> None:
    file, settings, benchmark = openr1(tmp_path, 1000)
    sets = split_questions(load_questions(settings), settings)
    training = {normalise(q.text) for q in (*sets.n1, *sets.n2, *sets.tuning)}
    found = load_benchmark(benchmark, file, training)
    assert [q.text for q in found.questions] == [q.text for q in sets.test]
    assert found.passed_over == 0
    assert found.surprise is None


def test_the_held_out_part_is_never_trained_on(tmp_path: Path) -> None:
    file, settings, benchmark = openr1(tmp_path, 1000)
    other = settings.model_copy(update={"split_seed": 9})
    sets = split_questions(load_questions(other), other)
    training = {normalise(q.text) for q in (*sets.n1, *sets.n2, *sets.tuning)}
    found = load_benchmark(benchmark, file, training)
    assert not training & {normalise(q.text) for q in found.questions}
    assert found.passed_over == len(
        training & {normalise(q.text) for q in load_benchmark(benchmark, file).questions}
    )
    assert 0 < found.passed_over < 500
    assert len(found.questions) == 500
    everything = {normalise(row["problem"]) for row in map(json.loads, file.read_text().splitlines())}
    with pytest.raises(UserError, match="trains on every question"):
        load_benchmark(benchmark, file, everything)
