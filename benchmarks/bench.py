"""Speed and memory, each figure a ratio measured side by side.

    python benchmarks/bench.py --only update-24m            one part, and nothing is kept
    python benchmarks/bench.py --only update-24m --runs 3
    python benchmarks/bench.py --write                      everything (`make bench`)

docs/speed.md says what each part measures.
"""

import argparse
import json
import os
from collections.abc import Callable

# Before torch and TRL are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from side_by_side import Found, update, whole

RUNS = 5

PARTS: dict[str, Callable[[int], Found]] = {
    "update-tiny": lambda runs: update("tiny", runs, ("sdft", "sdpo", "distillation")),
    "update-24m": lambda runs: update("24m", runs, ("sdft",)),
    "peers-24m": lambda runs: update("24m", runs, ("sdft", "sdpo", "distillation")),
    "update-70m": lambda runs: update("70m", runs, ("sdft",)),
    "peers-70m": lambda runs: update("70m", runs, ("sdpo", "distillation"), batch=2),
    "update-100m": lambda runs: update("100m", runs, ("sdft",)),
    "step-tiny": lambda runs: whole("tiny", runs),
    "step-24m": lambda runs: whole("24m", runs, as_it_comes=True),
    "step-70m": lambda runs: whole("70m", runs),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=list(PARTS), required=True, help="this part only")
    parser.add_argument("--runs", type=int, default=RUNS, help=f"turns of each (default: {RUNS})")
    parser.add_argument("--threads", type=int, default=None, help="default: as many as there are cores")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    found = PARTS[arguments.only](arguments.runs)
    print(json.dumps({"entries": [e.to_json() for e in found.entries], "details": found.details}, indent=2))


if __name__ == "__main__":
    main()
