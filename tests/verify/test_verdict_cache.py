"""Verdicts of before: what is kept, and a file that several processes share."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.errors import UserError
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verdict_cache import VerdictCache, key_of
from support import environment

KEPT = [outcome for outcome in Outcome if outcome not in (Outcome.TIMEOUT, Outcome.ERROR)]

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "not yet there" / "verdicts.sqlite"


@pytest.mark.parametrize("outcome", KEPT)
def test_a_verdict_comes_back(file: Path, outcome: Outcome) -> None:
    cache = VerdictCache(file)
    cache.put("a", Verdict(outcome, "why"))
    assert cache.get("a") == Verdict(outcome, "why")
    assert cache.get("b") is None
    cache.close()
    again = VerdictCache(file)
    found = again.get("a")
    assert found == Verdict(outcome, "why")
    assert found is not None
    assert found.outcome is outcome
    again.close()


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.ERROR])
def test_what_may_end_otherwise_the_next_time_is_not_kept(file: Path, outcome: Outcome) -> None:
    cache = VerdictCache(file)
    cache.put("a", Verdict(outcome))
    assert cache.get("a") is None
    cache.put("a", Verdict(Outcome.WRONG, "before"))
    cache.put("a", Verdict(outcome))
    assert cache.get("a") == Verdict(Outcome.WRONG, "before")
    cache.close()


def test_the_last_verdict_of_a_key_counts(file: Path) -> None:
    cache = VerdictCache(file)
    cache.put("a", Verdict(Outcome.WRONG))
    cache.put("a", Verdict(Outcome.CORRECT))
    assert cache.get("a") == Verdict(Outcome.CORRECT)
    cache.close()


@pytest.mark.parametrize("detail", ["", "é\n'\"; DROP TABLE verdicts", "a\0b", "half a pair: \ud800"])
def test_any_detail_comes_back(file: Path, detail: str) -> None:
    # A program decides what its errors say.
    cache = VerdictCache(file)
    cache.put("a", Verdict(Outcome.RUNTIME_ERROR, detail))
    assert cache.get("a") == Verdict(Outcome.RUNTIME_ERROR, detail)
    cache.close()


@given(_json, _json)
def test_equal_parts_and_no_others_have_one_key(first: Any, second: Any) -> None:
    # As JSON 1, 1.0 and true differ, though Python takes them for equal.
    assert (key_of("x", first) == key_of("x", second)) == (_with_kinds(first) == _with_kinds(second))


def _with_kinds(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_kinds(item) for item in value]
    if isinstance(value, dict):
        return {key: _with_kinds(item) for key, item in value.items()}
    return (type(value).__name__, repr(value))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("ab", "c"), ("a", "bc")),
        (("a", "b"), ("b", "a")),
        (("a",), ("a", None)),
        ((["a"],), ("a",)),
        (("1",), (1,)),
        ((True,), (1,)),
        (("\ud800",), ("?",)),
        (("a ",), ("a",)),
        (({"a": {"b": 1}},), ({"a": {"b": 2}},)),
    ],
)
def test_different_parts_have_different_keys(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert key_of(*first) != key_of(*second)


def test_a_key_depends_on_no_process_and_no_order() -> None:
    told = _run("print(key_of('x', {'b': [1, 'é'], 'a': {'d': None, 'c': 2.5}}))", PYTHONHASHSEED="1")
    assert told == key_of("x", {"a": {"c": 2.5, "d": None}, "b": [1, "é"]})


def _run(code: str, **variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"from sdzero.verify.verdict_cache import *\n{code}"],
        env=environment() | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _no_database(file: Path) -> None:
    file.write_bytes(b"no database at all" * 100)


def _a_folder(file: Path) -> None:
    file.mkdir()


def _cut_short(file: Path) -> None:
    cache = VerdictCache(file)
    for number in range(500):
        cache.put(str(number), Verdict(Outcome.WRONG, "x" * 100))
    cache.close()
    with file.open("r+b") as opened:
        opened.truncate(6000)


def _of_another_program(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE verdicts (name TEXT)")
    database.close()


def _of_another_version(file: Path) -> None:
    with sqlite3.connect(file) as database:
        database.execute("CREATE TABLE verdicts (key TEXT PRIMARY KEY, outcome TEXT, detail TEXT)")
        database.execute("INSERT INTO verdicts VALUES ('1', 'splendid', '')")
    database.close()


@pytest.mark.parametrize(
    "spoil", [_no_database, _a_folder, _cut_short, _of_another_program, _of_another_version]
)
def test_a_file_that_is_no_cache_is_told(tmp_path: Path, spoil: Any) -> None:
    file = tmp_path / "verdicts.sqlite"
    spoil(file)
    with pytest.raises(UserError, match="cache of verdicts") as caught:
        VerdictCache(file).get("1")
    assert caught.value.where == str(file)
    assert "delete the file" in str(caught.value.todo)


def test_one_that_makes_the_file_at_the_same_time_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE something (key TEXT)")
    timer = threading.Timer(0.3, other.execute, ["COMMIT"])
    timer.start()
    cache = VerdictCache(file)
    cache.put("a", Verdict(Outcome.CORRECT))
    assert cache.get("a") == Verdict(Outcome.CORRECT)
    timer.join()
    cache.close()
    other.close()


SHARE = """
import sys
from pathlib import Path
from sdzero.verify.verdict import Outcome, Verdict
sys.stdin.readline()
cache = VerdictCache(Path(sys.argv[1]))
for number in range(150):
    cache.put(f"{number}", Verdict(Outcome.WRONG, f"test {number}"))
    cache.put(f"{sys.argv[2]} {number}", Verdict(Outcome.CORRECT))
    assert cache.get(f"{number}") == Verdict(Outcome.WRONG, f"test {number}")
    if number == 100 and len(sys.argv) > 3:
        print("there", flush=True)
        sys.stdin.readline()
cache.close()
"""


def _sharing(file: Path, *arguments: str) -> "subprocess.Popen[str]":
    code = f"from sdzero.verify.verdict_cache import *\n{SHARE}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(file), *arguments], env=environment(), text=True, **pipes
    )


def test_processes_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    processes = [_sharing(file, name) for name in "abc"]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    cache = VerdictCache(file)
    for number in range(150):
        assert cache.get(f"{number}") == Verdict(Outcome.WRONG, f"test {number}")
        assert [cache.get(f"{name} {number}") for name in "abc"] == [Verdict(Outcome.CORRECT)] * 3
    cache.close()


def test_a_killed_process_leaves_what_it_had_put(tmp_path: Path) -> None:
    file = tmp_path / "verdicts.sqlite"
    with _sharing(file, "a", "wait") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "there\n"
        began = time.monotonic()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    cache = VerdictCache(file)
    assert all(cache.get(f"a {number}") == Verdict(Outcome.CORRECT) for number in range(101))
    cache.put("b", Verdict(Outcome.CORRECT))
    cache.close()
    assert time.monotonic() - began < 10
