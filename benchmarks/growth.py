"""How our update grows: with the tokens of a response, the vocabulary, the batch, and with processes.

    torchrun --nproc-per-node 2 benchmarks/growth.py --worker FOLDER      (is called by `processes`)

Each figure is the time for each unit at the largest size over that at the smallest: 1 is growth in
proportion, below 1 is less. For processes it is how many times as fast two are as one, one thread each, on
the same batch; it counts only if both end the step with the same weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from entries import Entry, Found
from shapes import SHAPES, Shape, make_folder, questions_of, recorded_responses, roles_of
from step import our_step
from timing import Seconds, alternate, medians
from transformers import AutoTokenizer

BASE = replace(SHAPES["24m"], response_tokens=128, batch=2)
AXES: Mapping[str, tuple[Shape, ...]] = {
    "T": tuple(replace(BASE, response_tokens=tokens) for tokens in (64, 128, 256, 512)),
    "V": tuple(replace(BASE, vocabulary=size) for size in (16_384, 32_768, 65_536, 131_072)),
    "B": tuple(replace(BASE, batch=questions) for questions in (1, 2, 4, 8)),
}
TOGETHER = replace(BASE, batch=8)
"""The batch that processes share."""
UNIT: Mapping[str, Callable[[Shape], int]] = {
    "T": lambda shape: shape.response_tokens,
    "V": lambda shape: shape.vocabulary,
    "B": lambda shape: shape.batch,
}


def growth(runs: int, axes: Mapping[str, tuple[Shape, ...]] = AXES) -> Found:
    """One axis after the other, the sizes of an axis side by side."""
    found = Found(details={"growth": {}})
    for axis, shapes in axes.items():
        seconds = seconds_of(shapes, runs)
        units = [UNIT[axis](shape) for shape in shapes]
        rows = [{"size": unit, "seconds": took} for unit, took in zip(units, seconds, strict=True)]
        found.details["growth"][axis] = rows
        ratio = relative_growth(units, seconds)
        found.entries.append(Entry(f"growth/{axis}", ratio, None, "lower", runs))
    return found


def relative_growth(units: list[int], seconds: list[float]) -> float:
    """Seconds for each unit at the last size over those at the first."""
    return (seconds[-1] / units[-1]) / (seconds[0] / units[0])


def seconds_of(shapes: tuple[Shape, ...], runs: int) -> list[float]:
    """Median seconds of an update at each shape."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        turns: dict[str, Callable[[], Seconds]] = {}
        for number, shape in enumerate(shapes):
            turns[str(number)] = stack.enter_context(recorded_step(shape, Path(place) / str(number))).turn
        found = medians(alternate(turns, runs))
    return [found[str(number)]["update"] for number in range(len(shapes))]


def recorded_step(shape: Shape, workplace: Path, **settings: Any) -> Any:
    """Our step on recorded responses, in a new folder."""
    workplace.mkdir()
    folder = make_folder(shape, workplace / "model")
    roles = roles_of(AutoTokenizer.from_pretrained(folder))
    recorded = recorded_responses(shape, roles, questions_of(shape, roles))
    return our_step(shape, folder, workplace, recorded=recorded, settings=settings)


def processes(runs: int, shape: Shape = TOGETHER) -> Found:
    """One process against two, one thread each; their turns are not in one process, but they alternate."""
    took: dict[int, list[float]] = {1: [], 2: []}
    agreed = True
    with tempfile.TemporaryDirectory() as place:
        for number in range(runs):
            for count in took:
                workplace = Path(place) / f"{number}-{count}"
                rows = together(count, shape, workplace)
                took[count].append(max(row["seconds"] for row in rows))
                agreed = agreed and len({row["weights"] for row in rows}) == 1
    seconds = {count: statistics.median(own) for count, own in took.items()}
    rows = [{"size": count, "seconds": own} for count, own in seconds.items()]
    found = Found(details={"processes": {"sizes": rows, "same weights": agreed}})
    if agreed:
        found.entries.append(Entry("growth/processes", seconds[1] / seconds[2], None, "higher", runs))
    return found


def together(count: int, shape: Shape, workplace: Path) -> list[dict[str, Any]]:
    """One step by `count` processes: seconds, and a sum over the weights after it, of each."""
    workplace.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
    command += [__file__, "--worker", str(workplace), "--model", shape.name]
    command += ["--batch", str(shape.batch), "--tokens", str(shape.response_tokens)]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=one_thread, stdout=subprocess.DEVNULL)
    return [json.loads(file.read_text()) for file in sorted(workplace.glob("rank-*.json"))]


def work(workplace: Path, shape: Shape) -> None:
    """One process of several: the second step of two."""
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    own = workplace / f"work-{rank}"
    settings = {"micro_batch_size": shape.batch // count, "learning_rate": 1e-3}
    with recorded_step(shape, own, **settings) as step:
        step.turn()
        seconds = step.turn()["step"]
        weights = sum(p.detach().double().abs().sum().item() for p in step.model.parameters())
    (workplace / f"rank-{rank}.json").write_text(json.dumps({"seconds": seconds, "weights": weights}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--worker", type=Path, required=True, help="the folder that the processes share")
    parser.add_argument("--model", choices=list(SHAPES), default=TOGETHER.name)
    parser.add_argument("--batch", type=int, default=TOGETHER.batch)
    parser.add_argument("--tokens", type=int, default=TOGETHER.response_tokens)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape = replace(SHAPES[arguments.model], batch=arguments.batch, response_tokens=arguments.tokens)
    work(arguments.worker, shape)


if __name__ == "__main__":
    main()
