"""Whole steps with each trainer in a process of its own, as its users have it: ours against TRL's SDFT.

    python benchmarks/apart.py --who ours --shape 24m      one contestant: a step for each line of its input

A run of `sdzero` tells the C library to keep freed memory (`sdzero.allocator`); TRL does not. In one process
what one trainer sets holds for the other too, so here they have two, which take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from entries import Entry, Found
from timing import Seconds

AT_LEAST_AS_FAST = 2.0
CONTESTANTS = ("ours", "sdft")
PARTS = ("step", "update")
PROMISED = (("24m", "step"), ("70m", "step"), ("70m", "update"))


def step_apart(name: str, runs: int) -> Found:
    """Both processes take turns, after a step each that is not kept."""
    import torch

    turns: dict[str, list[Seconds]] = {who: [] for who in CONTESTANTS}
    with ExitStack() as stack:
        steps = {who: stack.enter_context(contestant(who, name, torch.get_num_threads())) for who in turns}
        for number in range(runs + 1):
            for who in CONTESTANTS if number % 2 else reversed(CONTESTANTS):
                seconds = steps[who]()
                if number:
                    turns[who].append(seconds)
    medians = {
        who: {part: statistics.median(turn[part] for turn in own) for part in PARTS}
        for who, own in turns.items()
    }
    entries = []
    for part in PARTS:
        promised = AT_LEAST_AS_FAST if (name, part) in PROMISED else None
        ratio = medians["sdft"][part] / medians["ours"][part]
        entries.append(Entry(f"{part}-{name}/sdft-own-process", ratio, promised, "higher", runs))
    return Found(entries, {f"apart-{name}": {"seconds": medians}})


@contextmanager
def contestant(who: str, shape: str, threads: int) -> Iterator[Callable[[], Seconds]]:
    """A process that waits, and what makes it take one step and say how long it took."""
    command = [sys.executable, __file__, "--who", who, "--shape", shape, "--threads", str(threads)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step() -> Seconds:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("step\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of `{who}` ended: see its output above")
        return {part: float(seconds) for part, seconds in json.loads(line).items()}

    try:
        yield step
    finally:
        process.kill()
        process.wait()


def serve(who: str, name: str) -> None:
    """A step for each line that comes in; its seconds, and those of its update, go out as JSON."""
    from peers import PeerStep
    from shapes import SHAPES, make_folder
    from step import our_step

    from sdzero.allocator import keep_freed_memory

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = make_folder(shape, Path(place) / "model")
        if who == "ours":
            keep_freed_memory()
            turn = stack.enter_context(our_step(shape, folder, Path(place))).turn
        else:
            turn = PeerStep("sdft", shape, folder, Path(place)).turn
        for _ in sys.stdin:
            seconds = turn()
            print(json.dumps({part: seconds[part] for part in PARTS}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--who", choices=CONTESTANTS, required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    serve(arguments.who, arguments.shape)


if __name__ == "__main__":
    main()
