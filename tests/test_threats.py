"""What the page on threats claims and no other test shows; and that the tests that it names are there."""

import json
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from transformers import AutoConfig, dynamic_module_utils

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.models import load_model, load_tokenizer
from sdzero.questions.huggingface import open_dataset
from sdzero.recipe import ModelSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/threat-model.md"

CODE = "from pathlib import Path\nPath({trace!r}).write_text('it ran')\n"


def test_the_tests_that_the_page_names_are_there() -> None:
    named = re.findall(r"`((?:tests/)?(?:[\w/]+/)?test_\w+\.py)`", PAGE.read_text())
    assert len(named) > 12
    known = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    for name in named:
        assert (ROOT / name).is_file() if name.startswith("tests/") else name in known, name


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, trace = Path(shutil.copytree(tiny.model_folder(), tmp_path / "model")), tmp_path / "trace"
    (folder / "own.py").write_text(CODE.format(trace=str(trace)) + "class Own: ...\n")
    maps = {
        "config.json": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"},
        "tokenizer_config.json": {"AutoTokenizer": ["own.Own", "own.Own"]},
    }
    for name, auto_map in maps.items():
        values = json.loads((folder / name).read_text()) | {"auto_map": auto_map, "model_type": "own-type"}
        (folder / name).write_text(json.dumps(values))
    for load in (load_tokenizer, lambda path: load_model(path, ModelSettings(path=path, device="cpu"))):
        with suppress(UserError):  # refused, or read without the code
            load(str(folder))
    assert not trace.exists()
    # The trap is one: whoever trusts the folder runs its code.
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    with suppress(Exception):
        AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert trace.exists()


def test_code_that_comes_with_a_data_set_is_not_run(tmp_path: Path) -> None:
    folder, trace = tmp_path / "rows", tmp_path / "trace"
    folder.mkdir()
    (folder / "rows.py").write_text(CODE.format(trace=str(trace)))
    (folder / "train.jsonl").write_text('{"question": "1 + 1", "answer": "2"}\n')
    with pytest.raises(UserError, match="no longer supported"):
        open_dataset(str(folder), None, "train")
    (folder / "rows.py").rename(folder / "other.py")
    assert len(open_dataset(str(folder), None, "train")) == 1
    assert not trace.exists()
