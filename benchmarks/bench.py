"""Speed and memory: every figure is a ratio of two things measured side by side on this machine.

    python benchmarks/bench.py --only update-24m      one part, printed and not kept
    python benchmarks/bench.py --write                all parts (`make bench`): results and docs/speed.md
    python benchmarks/bench.py --check                all parts against the committed results
    python benchmarks/bench.py --check other.json     two files of results (`make bench-check`)

docs/speed.md says what each part measures. Each runs in a process of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

# Before torch and TRL are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from documents import RESULTS, ROOT, fill
from entries import Entry, Found, read_entries, regressions, this_machine
from speed_page import blocks

RUNS = 5
STORED, DETAILS = RESULTS / "bench.json", RESULTS / "bench_details.json"
PAGE = ROOT / "docs" / "speed.md"


# Parts import what they need themselves: comparing two files needs no torch.


def update(*arguments: Any, **named: Any) -> Found:
    """See `side_by_side.update`."""
    import side_by_side

    return side_by_side.update(*arguments, **named)


def whole(*arguments: Any, **named: Any) -> Found:
    """See `side_by_side.whole`."""
    import side_by_side

    return side_by_side.whole(*arguments, **named)


def step_apart(*arguments: Any, **named: Any) -> Found:
    """See `apart.step_apart`."""
    import apart

    return apart.step_apart(*arguments, **named)


def memory(runs: int) -> Found:
    """Peak memory: measured once each, since it does not vary."""
    from memory import memory

    return memory()


def growth(runs: int) -> Found:
    """With T, V and B, and with processes."""
    from growth import growth, processes

    sizes, shared = growth(runs), processes(runs)
    return Found(sizes.entries + shared.entries, sizes.details | shared.details)


def rollouts(runs: int) -> Found:
    """Sampling against `model.generate`."""
    import rollout_speed

    found = [dict(entry) for entry in rollout_speed.entries(runs)]
    speeds = {entry["name"]: entry.pop("tokens_per_second") for entry in found}
    return Found([Entry(**entry) for entry in found], {"rollouts": {"tokens_per_second": speeds}})


def sandbox(runs: int) -> Found:
    """Programs in the sandbox against bare interpreters."""
    import sandbox_speed

    measured = sandbox_speed.measure(runs=20 * runs, programs=100, rounds=runs)
    return Found(sandbox_speed.entries_of(measured), {"sandbox": measured})


PARTS: Mapping[str, Callable[[int], Found]] = {
    "update-tiny": lambda runs: update("tiny", 3 * runs, ("sdft", "sdpo", "distillation")),
    "step-tiny": lambda runs: whole("tiny", 3 * runs),
    "peers-24m": lambda runs: update("24m", runs, ("sdft", "sdpo", "distillation")),
    "step-24m": lambda runs: whole("24m", runs, as_it_comes=True),
    "step-24m-apart": lambda runs: step_apart("24m", runs),
    "step-70m": lambda runs: whole("70m", runs, updates=True),
    "step-70m-apart": lambda runs: step_apart("70m", runs),
    "peers-70m": lambda runs: update("70m", runs, ("sdpo", "distillation"), batch=2),
    "memory": memory,
    "rollouts": rollouts,
    "growth": growth,
    "sandbox": sandbox,
}
"""What `make bench` is made of; `runs` are turns of each contestant."""

ALONE: Mapping[str, Callable[[int], Found]] = {
    "update-24m": lambda runs: update("24m", runs, ("sdft",)),
    "update-70m": lambda runs: update("70m", runs, ("sdft",)),
    "update-100m": lambda runs: update("100m", runs, ("sdft",)),
}
"""Parts to be asked for by name: they measure again what others do, or more than there is time for."""


def run_part(name: str, runs: int, threads: int) -> Found:
    """One part, in this process, with this machine named in its entries."""
    import torch

    from sdzero.allocator import keep_freed_memory

    if name != "memory":  # as a run does on a CPU, and for all that is timed beside it
        keep_freed_memory()
    torch.set_num_threads(threads)
    found = {**PARTS, **ALONE}[name](runs)
    machine = this_machine() | {"threads": threads}
    entries = [Entry(e.name, round(e.ratio, 4), e.target, e.better, e.runs, machine) for e in found.entries]
    return Found(entries, found.details)


def run_all(runs: int, threads: int, kept: Path | None = None) -> Found:
    """All parts, each in a process of its own; with `kept`, those in this folder are not run again."""
    everything = Found()
    with tempfile.TemporaryDirectory() as place:
        for name in PARTS:
            file, started = (kept or Path(place)) / f"{name}.json", time.monotonic()
            command = [sys.executable, __file__, "--only", name, "--into", str(file)]
            command += ["--runs", str(runs), "--threads", str(threads)]
            if not file.exists():
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            part = json.loads(file.read_text())
            everything.entries += [Entry(**entry) for entry in part["entries"]]
            everything.details |= part["details"]
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)
    return everything


def as_json(found: Found) -> dict[str, Any]:
    """Entries and details in one."""
    return {"entries": [entry.to_json() for entry in found.entries], "details": found.details}


def write(found: Found) -> None:
    """Keep the results, and fill in the page."""
    STORED.write_text(json.dumps([entry.to_json() for entry in found.entries], indent=2) + "\n")
    DETAILS.write_text(json.dumps(found.details, indent=2) + "\n")
    fill(PAGE, blocks(found))


def check(measured: Sequence[Entry]) -> None:
    """Exit with the names of what is worse than committed by over 15%."""
    if not STORED.is_file():
        sys.exit(f"{STORED} is not there: run `make bench` first")
    lines = regressions(read_entries(STORED), measured)
    if lines:
        sys.exit("worse than committed:\n" + "\n".join(f"  {line}" for line in lines))
    print(f"no regression in {len(measured)} figures")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--only", choices=[*PARTS, *ALONE], metavar="NAME", help="run one part and print it")
    what.add_argument("--write", action="store_true", help="run all, keep the results, fill in the page")
    what.add_argument("--fill", action="store_true", help="fill in the page from the kept results")
    what.add_argument(
        "--check",
        nargs="?",
        const="",
        metavar="FILE",
        help="compare FILE, or a new run, with the kept results",
    )
    parser.add_argument("--runs", type=int, default=RUNS, help=f"turns of each (default: {RUNS})")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help=f"default: one a core, so {cores}")
    parser.add_argument("--into", type=Path, default=None, help="with --only: write the result to this file")
    parser.add_argument(
        "--kept",
        type=Path,
        default=None,
        help="with --write: a folder of parts; those there are not run again",
    )
    arguments = parser.parse_args()
    if arguments.only:
        text = json.dumps(as_json(run_part(arguments.only, arguments.runs, arguments.threads)), indent=2)
        print(text)
        if arguments.into:
            arguments.into.write_text(text)
    elif arguments.fill:
        fill(PAGE, blocks(Found(read_entries(STORED), json.loads(DETAILS.read_text()))))
    elif arguments.write:
        write(run_all(arguments.runs, arguments.threads, arguments.kept))
    elif arguments.check:
        check(read_entries(Path(arguments.check)))
    else:
        check(run_all(arguments.runs, arguments.threads).entries)


if __name__ == "__main__":
    main()
