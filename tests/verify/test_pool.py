"""Workers that hang, crash, print, leave children or lose their parent."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import sdzero.verify.pool as pool_module
from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.verify.pool import VerifierPool
from sdzero.verify.verdict import Outcome, Verdict

MODULE = """
import os, re, signal, subprocess, sys, time
from pathlib import Path
from sdzero.questions.question import Question
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Canary

def act(question, response):
    word, _, argument = response.partition(" ")
    if word == "sleep":
        time.sleep(float(argument))
    elif word == "regex":
        re.match(r"(a+)+$", "a" * 60 + "b")
    elif word == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif word == "crash_once" and not Path(argument).exists():
        Path(argument).touch()
        os._exit(3)
    elif word == "raise":
        raise ValueError("what is this")
    elif word == "leave":
        sys.exit("goodbye")
    elif word == "print":
        print("noise" * 1000)
        os.write(1, b"more noise")
    elif word == "child":
        child = subprocess.Popen(["sleep", "60"])
        Path(argument).write_text(str(child.pid))
        time.sleep(60)
    elif word == "modules":
        return Verdict(Outcome.WRONG, str("torch" in sys.modules))
    elif word == "surrogate":
        return Verdict(Outcome.WRONG, argument)
    return response == question.answer

class WrongCanary:
    name = "wrong canary"
    def grade(self, question, response): return Verdict(Outcome.CORRECT, "always")
    def canaries(self):
        question = Question("c", "1+1?", "2")
        return [Canary(question, "2", Outcome.CORRECT), Canary(question, "the number 3", Outcome.WRONG)]

def dies(): os._exit(7)
"""
NAME = "own_verifiers_for_pool:act"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("modules")
    (made / "own_verifiers_for_pool.py").write_text(MODULE)
    return made


@pytest.fixture(scope="module")
def pool(folder: Path) -> Iterator[VerifierPool]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        with VerifierPool(NAME, workers=2, timeout_seconds=1.0) as opened:
            yield opened


def _grade(pool: VerifierPool, *responses: str) -> list[Verdict]:
    return pool.grade([(Question(str(i), "?", "yes"), text) for i, text in enumerate(responses)])


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _gone(pid: int, within_seconds: float) -> bool:
    end = time.monotonic() + within_seconds
    while _is_alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not _is_alive(pid)


def test_nothing_to_grade(pool: VerifierPool) -> None:
    assert _grade(pool) == []


def test_verdicts_are_in_the_order_of_the_items(pool: VerifierPool) -> None:
    responses = ["yes" if i % 3 == 0 else "no" for i in range(1000)]
    responses[0] = "sleep 0.1"
    verdicts = _grade(pool, *responses)
    assert [v.reward for v in verdicts[1:]] == [int(text == "yes") for text in responses[1:]]


def test_the_limit_is_for_each_item_and_not_for_a_chunk(pool: VerifierPool) -> None:
    verdicts = _grade(pool, *["sleep 0.35"] * 8)
    assert [v.outcome for v in verdicts] == [Outcome.WRONG] * 8


@pytest.mark.parametrize("response", ["sleep 60", "regex"])
def test_an_item_over_its_time_is_ended_and_the_rest_graded(pool: VerifierPool, response: str) -> None:
    began = time.monotonic()
    verdicts = _grade(pool, "yes", "no", response, "yes", "no", "yes")
    assert time.monotonic() - began < 10
    assert verdicts[2].outcome == Outcome.TIMEOUT
    assert [v.reward for v in verdicts] == [1, 0, 0, 1, 0, 1]
    assert all(v.outcome != Outcome.TIMEOUT for i, v in enumerate(verdicts) if i != 2)


def test_a_crash_is_an_error_and_the_rest_is_graded(pool: VerifierPool) -> None:
    verdicts = _grade(pool, "yes", "crash", "no", "yes", "no")
    assert [v.outcome for v in verdicts] == ["correct", "error", "wrong", "correct", "wrong"]
    assert "SIGSEGV" in verdicts[1].detail
    assert not verdicts[1].counts


def test_a_worker_that_dies_once_costs_nothing(pool: VerifierPool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    verdicts = _grade(pool, "yes", f"crash_once {mark}", "yes")
    assert mark.exists()
    assert [v.outcome for v in verdicts] == ["correct", "wrong", "correct"]


def test_an_exception_and_an_exit_are_errors_with_their_text(pool: VerifierPool) -> None:
    verdicts = _grade(pool, "raise", "leave", "yes")
    assert [v.outcome for v in verdicts] == ["error", "error", "correct"]
    assert verdicts[0].detail == "ValueError: what is this"
    assert "goodbye" in verdicts[1].detail


def test_a_verifier_that_prints_does_not_disturb(pool: VerifierPool) -> None:
    assert [v.reward for v in _grade(pool, "print", "yes", "no")] == [0, 1, 0]


def test_any_text_goes_through(pool: VerifierPool) -> None:
    odd = "\ud800 \x00 \u2028 é"
    assert _grade(pool, f"surrogate {odd}")[0].detail == odd
    assert _grade(pool, "yes" * 1_000_000, "yes")[1].outcome == Outcome.CORRECT


def test_workers_do_without_torch(pool: VerifierPool) -> None:
    assert _grade(pool, "modules")[0].detail == "False"


def test_what_a_verifier_started_ends_with_it(pool: VerifierPool, tmp_path: Path) -> None:
    assert _grade(pool, f"child {tmp_path / 'pid'}")[0].outcome == Outcome.TIMEOUT
    assert _gone(int((tmp_path / "pid").read_text()), within_seconds=2)


def test_an_interrupted_call_leaves_nothing_to_the_next(pool: VerifierPool) -> None:
    def interrupt(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            _grade(pool, *["sleep 0.3"] * 6)
    finally:
        signal.signal(signal.SIGALRM, previous)
    assert [v.reward for v in _grade(pool, "yes", "no", "yes")] == [1, 0, 1]


def test_metadata_that_is_not_json_is_an_error_for_people(pool: VerifierPool) -> None:
    with pytest.raises(UserError, match="metadata cannot be sent"):
        pool.grade([(Question("q", "?", "yes", metadata={"x": object()}), "yes")])


def test_a_verifier_without_canaries_says_so(pool: VerifierPool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="sdzero"):
        pool.check_canaries()
    assert "has no canaries" in caplog.text


def test_leaving_the_block_ends_the_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    with VerifierPool(NAME, workers=2, timeout_seconds=60) as opened:
        pids = [worker.process.pid for worker in opened._workers]
        assert all(_is_alive(pid) for pid in pids)
    assert not any(_is_alive(pid) for pid in pids)
    with pytest.raises(RuntimeError):
        _grade(opened, "yes")


def test_a_failing_canary_stops_the_run_and_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    with (
        VerifierPool("own_verifiers_for_pool:WrongCanary", workers=1, timeout_seconds=5) as opened,
        pytest.raises(UserError, match="fails on 1 of 2") as caught,
    ):
        opened.check_canaries()
    assert "the number 3" in caught.value.what
    assert "graded correct" in caught.value.what


def test_a_bad_name_is_told_by_the_pool() -> None:
    with (
        pytest.raises(UserError, match="no_such_module_anywhere"),
        VerifierPool("no_such_module_anywhere:f", 2, 5),
    ):
        pass


def test_a_verifier_that_kills_its_process_at_the_start(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folder))
    with (
        pytest.raises(UserError, match="does not start: its process ended with exit code 7"),
        VerifierPool("own_verifiers_for_pool:dies", 1, 5),
    ):
        pass


def test_starting_up_does_not_count_as_an_items_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_slow_to_import.py").write_text(
        "import time; time.sleep(1)\ndef f(question, response): return 1"
    )
    monkeypatch.syspath_prepend(str(folder))
    with VerifierPool("own_slow_to_import:f", workers=1, timeout_seconds=0.3) as opened:
        assert _grade(opened, "x", "y") == [Verdict(Outcome.CORRECT)] * 2


def test_a_worker_that_never_gets_ready_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own_never_ready.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(pool_module, "STARTUP_SECONDS", 0.2)
    with pytest.raises(UserError, match="was not ready"), VerifierPool("own_never_ready:f", 1, 5):
        pass


def test_the_built_in_verifiers_pass_their_canaries() -> None:
    for name in ("math", "puzzle"):
        with VerifierPool(name, workers=1, timeout_seconds=20) as opened:
            opened.check_canaries()


SCRIPT = """
import os, sys
from sdzero.questions.question import Question
from sdzero.verify.pool import VerifierPool

print("main", flush=True)
with VerifierPool({name!r}, 1, {timeout}) as pool:
    question = Question("q", "?", "yes")
    print([v.outcome.value for v in pool.grade([(question, "yes")])], flush=True)
    print(pool._workers[0].process.pid, flush=True)
    {then}
"""


def _run_script(folder: Path, then: str, name: str = NAME, timeout: float = 5) -> subprocess.Popen[str]:
    # No `if __name__ == "__main__"`, and the verifier is found because it lies beside the script.
    script = folder / "script_without_guard.py"
    script.write_text(textwrap.dedent(SCRIPT).format(name=name, timeout=timeout, then=then))
    source = Path(pool_module.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)


def test_a_script_without_a_guard_runs_once(folder: Path) -> None:
    output, _ = _run_script(folder, "pass").communicate(timeout=30)
    assert output.splitlines()[:2] == ["main", "['correct']"]
    assert output.count("main") == 1


def test_an_idle_worker_ends_with_its_parent(folder: Path) -> None:
    output, _ = _run_script(folder, "os.kill(os.getpid(), 9)").communicate(timeout=30)
    assert _gone(int(output.splitlines()[-1]), within_seconds=3)


def test_a_busy_worker_ends_with_its_parent_even_in_c_code(folder: Path) -> None:
    (folder / "own_orphan.py").write_text(
        "import sdzero.verify.worker as worker\n"
        "worker.ORPHAN_SECONDS = 0.5\n"
        "from own_verifiers_for_pool import act\n"
    )
    die_soon = "import threading; threading.Timer(0.3, os.kill, (os.getpid(), 9)).start()"
    then = f"{die_soon}; pool.grade([(question, 'regex')])"
    script = _run_script(folder, then, name="own_orphan:act", timeout=1.0)
    output, _ = script.communicate(timeout=30)
    assert _gone(int(output.splitlines()[2]), within_seconds=4)
