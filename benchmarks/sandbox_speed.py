"""What the sandbox costs: a trivial program in it beside a bare interpreter, and verdicts a second.

    python benchmarks/sandbox_speed.py [--write]

Side by side in one process, alternating, medians. `bare` is the same interpreter with the same option (`-I`)
and nothing installed, as a program in the sandbox has it; `bare without site` leaves out the import of
`site` as well (`-I -S`); `bare with packages` is the interpreter as it is installed here. Throughput: two
workers of the verifier `code` on distinct trivial programs (no cached verdicts) against two threads that run
the same program bare, one process after another.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from documents import RESULTS, ROOT, fill
from entries import Entry

from sdzero.questions.programs import ProgramTask, StdioCase, StdioTests, metadata_of
from sdzero.questions.question import Question
from sdzero.recipe import VerifierSettings
from sdzero.recipe_sandbox import SandboxSettings
from sdzero.verify.backends import limits_of, opened
from sdzero.verify.interpreter import find_interpreter
from sdzero.verify.pool import VerifierPool, pool_of
from sdzero.verify.sandbox import Job
from sdzero.verify.verdict import Outcome

STORED = RESULTS / "sandbox_speed.json"
WORKERS = 2


def seconds(work: Callable[[], Any]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def nothing_installed(folder: str) -> str:
    """The interpreter in an environment of its own without packages."""
    python = find_interpreter(None).executable
    subprocess.run([python, "-m", "venv", "--without-pip", folder], check=True)
    return f"{folder}/bin/python"


def start_times(runs: int, empty: str) -> dict[str, float]:
    """Median milliseconds of one run of an empty program, by way of running it."""
    settings, installed = SandboxSettings(), find_interpreter(None).executable

    def bare(*options: str) -> Callable[[], Any]:
        return lambda: subprocess.run([*options, "-c", "pass"], capture_output=True, check=True)

    with opened(settings) as sandbox:
        job = Job((*sandbox.python(), sandbox.place("main.py")), limits_of(settings), {"main.py": b"pass"})
        ways = {
            "sandbox": lambda: sandbox.run(job),
            "bare": bare(empty, "-I"),
            "bare without site": bare(empty, "-I", "-S"),
            "bare with packages": bare(installed, "-I"),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(runs):
            for way, work in ways.items():
                times[way].append(seconds(work))
    return {way: 1000 * statistics.median(own) for way, own in times.items()}


def trivial(number: int) -> tuple[Question, str]:
    """A question and a right response, like no other."""
    task = ProgramTask(tests=StdioTests(cases=[StdioCase(input=f"{number}\n", output=f"{number + 1}\n")]))
    question = Question(f"q{number}", "Add one.", "tests", metadata=metadata_of(task))
    return question, f"```python\nprint(int(input()) + 1)  # {number}\n```"


def throughput(programs: int, rounds: int, empty: str) -> dict[str, float]:
    """Median verdicts, and bare runs of the program, a second."""
    items = [trivial(number) for number in range(programs)]
    program = Path(empty).parent / "program.py"
    program.write_text("print(int(input()) + 1)\n")

    def graded(pool: VerifierPool) -> None:
        assert all(verdict.outcome is Outcome.CORRECT for verdict in pool.grade(items))

    def run_bare(number: int) -> None:
        command = [empty, "-I", str(program)]
        done = subprocess.run(command, input=f"{number}\n", capture_output=True, text=True, check=True)
        assert done.stdout == f"{number + 1}\n"

    def bare() -> None:
        with ThreadPoolExecutor(WORKERS) as threads:
            list(threads.map(run_bare, range(programs)))

    times: dict[str, list[float]] = {"verdicts": [], "bare": []}
    with pool_of(VerifierSettings(name="code", workers=WORKERS, timeout_seconds=30)) as pool:
        pool.grade(items[:8])
        for _ in range(rounds):
            times["verdicts"].append(seconds(lambda: graded(pool)))
            times["bare"].append(seconds(bare))
    return {way: programs / statistics.median(own) for way, own in times.items()}


def measure(runs: int, programs: int, rounds: int) -> dict[str, Any]:
    """Everything, as it is stored."""
    with tempfile.TemporaryDirectory() as folder:
        empty = nothing_installed(folder)
        start, rate = start_times(runs, empty), throughput(programs, rounds, empty)
    return {
        "milliseconds": {way: round(value, 2) for way, value in start.items()},
        "ratio_to_bare": round(start["sandbox"] / start["bare"], 2),
        "ratio_to_bare_without_site": round(start["sandbox"] / start["bare without site"], 2),
        "runs": runs,
        "workers": WORKERS,
        "verdicts_per_second": round(rate["verdicts"], 1),
        "bare_per_second": round(rate["bare"], 1),
        "throughput_ratio": round(rate["verdicts"] / rate["bare"], 2),
        "programs": programs,
        "rounds": rounds,
        "machine": {"cores": len(os.sched_getaffinity(0)), "python": platform.python_version()},
    }


def entries_of(found: dict[str, Any]) -> list[Entry]:
    """The two ratios: a start in the sandbox against a bare one, and verdicts against bare runs."""
    start, rate = found["ratio_to_bare"], found["throughput_ratio"]
    return [
        Entry("sandbox/start", start, None, "lower", found["runs"]),
        Entry("sandbox/verdicts", rate, None, "higher", found["rounds"]),
    ]


def block(found: dict[str, Any]) -> str:
    """The figures as a table for the page."""
    times = found["milliseconds"]
    rows = [
        ("an empty program in the sandbox", f"{times['sandbox']:.1f} ms"),
        ("a bare interpreter with nothing installed", f"{times['bare']:.1f} ms"),
        ("sandbox / bare interpreter", f"{found['ratio_to_bare']:.2f}"),
        ("sandbox / bare interpreter without `site`", f"{found['ratio_to_bare_without_site']:.2f}"),
        (f"verdicts, {found['workers']} workers", f"{found['verdicts_per_second']:.0f} a second"),
        (f"bare runs, {found['workers']} at a time", f"{found['bare_per_second']:.0f} a second"),
        ("verdicts / bare runs", f"{found['throughput_ratio']:.2f}"),
    ]
    rounds = f"{found['rounds']} rounds of {found['programs']} programs"
    head = f"| medians of {found['runs']} runs and of {rounds} | |"
    return "\n".join([head, "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=200, help="of each way (default: 200)")
    parser.add_argument("--programs", type=int, default=300, help="a round of throughput (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="of throughput (default: 5)")
    parser.add_argument("--write", action="store_true", help="keep the figures, and fill in the page")
    arguments = parser.parse_args()
    found = measure(arguments.runs, arguments.programs, arguments.rounds)
    print(json.dumps(found, indent=2))
    if arguments.write:
        STORED.write_text(json.dumps(found, indent=2) + "\n")
        fill(ROOT / "docs" / "sandbox.md", {"sandbox-speed": block(found)})


if __name__ == "__main__":
    main()
