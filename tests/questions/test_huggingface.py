"""Hugging Face datasets: folders and files on this machine, and hub ids without a network."""

import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pytest

from sdzero.errors import UserError
from sdzero.questions.sources import load_questions
from sdzero.recipe import DataSettings

COLUMNS = {"question": ["1+1?", "1+2?"], "answer": [2, 3], "day": [datetime.date(2024, 1, 2)] * 2}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def _load(path: Path | str, **keys: Any) -> list[tuple[str, str]]:
    settings = DataSettings(source="huggingface", path=str(path), n1=1, n2=1, test=1, **keys)
    return [(q.text, q.answer) for q in load_questions(settings)]


EXPECTED = [("1+1?", "2"), ("1+2?", "3")]


def test_a_folder_written_by_save_to_disk(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(COLUMNS).save_to_disk(str(tmp_path / "plain"))
    assert _load(tmp_path / "plain") == EXPECTED


def test_a_saved_folder_of_splits(tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"easy": datasets.Dataset.from_dict(COLUMNS)})
    splits.save_to_disk(str(tmp_path / "splits"))
    assert _load(tmp_path / "splits", split="easy") == EXPECTED
    with pytest.raises(UserError, match="no split `train`; the splits are: easy"):
        _load(tmp_path / "splits")


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_data_files_by_themselves_and_in_a_folder(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    file = folder / f"train.{suffix}"
    dataset = datasets.Dataset.from_dict(COLUMNS).remove_columns("day")
    write = {"parquet": dataset.to_parquet, "jsonl": dataset.to_json, "csv": dataset.to_csv}[suffix]
    write(str(file))
    assert _load(file) == EXPECTED
    assert _load(file, split="test[:1]") == EXPECTED[:1]
    assert _load(folder) == EXPECTED


def test_a_missing_column_names_the_columns_there_are(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(COLUMNS).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(
        UserError, match="no column `problem`; the columns are: question, answer, day"
    ) as caught:
        _load(tmp_path / "plain", fields={"question": "problem"})
    assert "fields.question" in str(caught.value.todo)


def test_faults_name_the_row(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({**COLUMNS, "answer": ["2", None]}).save_to_disk(str(tmp_path / "gap"))
    with pytest.raises(UserError, match="is empty") as caught:
        _load(tmp_path / "gap")
    assert "row 1" in str(caught.value.where)
    messages = [[{"role": "user", "content": "1+1?"}], [{"role": "user", "content": "1+2?"}]]
    datasets.Dataset.from_dict({**COLUMNS, "question": messages}).save_to_disk(str(tmp_path / "chat"))
    with pytest.raises(UserError, match="list of chat messages"):
        _load(tmp_path / "chat")


def test_metadata_that_is_not_json_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict(COLUMNS).save_to_disk(str(tmp_path / "plain"))
    with pytest.raises(UserError, match="column `day` cannot be kept as metadata"):
        _load(tmp_path / "plain", fields={"metadata": ["day"]})


def test_an_empty_folder_and_a_broken_file_are_errors_for_people(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="cannot be opened"):
        _load(tmp_path / "empty")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be opened"):
        _load(tmp_path / "broken.parquet")
    (tmp_path / "data.xlsx").write_bytes(b"")
    with pytest.raises(UserError, match=r"`\.xlsx` are not read"):
        _load(tmp_path / "data.xlsx")


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./data/questions", "gsm8k", "a/b/c"])
def test_a_missing_folder_that_is_no_hub_id(path: str) -> None:
    with pytest.raises(UserError, match="no such file or folder, and it does not look like a hub id"):
        _load(path)


def test_a_hub_id_without_a_network_fails_fast_and_without_a_traceback(tmp_path: Path) -> None:
    script = (
        "from sdzero.recipe import DataSettings\n"
        "from sdzero.questions.sources import load_questions\n"
        "from sdzero.errors import UserError\n"
        "import json\n"
        "settings = DataSettings(source='huggingface', path='owner/name', n1=1, n2=1, test=1)\n"
        "try:\n    load_questions(settings)\n"
        "except UserError as fault:\n    print(json.dumps([fault.what, fault.where, fault.todo]))\n"
    )
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - began < 30
    assert "Traceback" not in result.stderr
    what, where, todo = json.loads(result.stdout)
    assert "the hub cannot be reached" in what
    assert where == "owner/name"
    assert "HF_HUB_OFFLINE" in todo
