"""What the tests of several processes without training run in each of them."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from sdzero import ranks
from sdzero.energy import measuring
from sdzero.errors import UserError
from sdzero.ledger import Ledger
from sdzero.method.graded import Draw
from sdzero.method.grading import together
from sdzero.recipe_io import load_recipe
from sdzero.rollout.engine import Request, Sampling
from sdzero.run_dir import RunDir
from support import Bench, make_questions


def talk() -> dict[str, Any]:
    """What the processes tell each other."""
    own = ranks.own_share(range(5))
    return {
        "rank": ranks.rank(),
        "count": ranks.count(),
        "gathered": ranks.gather({"rank": ranks.rank()}),
        "first": ranks.from_first(lambda: f"of {ranks.rank()}"),
        "share": own,
        "whole": ranks.whole_of_shares([number * 10 for number in own]),
        "sum": ranks.add_up([1.0, float(ranks.rank())]),
    }


def prompt_end(prompt: str) -> str:
    """The number of the question that a prompt asks, and its question mark."""
    return prompt[: prompt.index("?") + 1].split()[-1]


def sample(folder: Path, questions: int) -> dict[str, Any]:
    """A batch of draws, twice; a few responses without verdicts; and items graded together."""
    bench = Bench(
        folder, lambda prompt, asked: {"1?": "right", "2?": "right..."}.get(prompt_end(prompt), "no")
    )
    draws = [
        Draw(question, tuple(bench.roles.generator_prompt(question)), seed=number)
        for number, question in enumerate(make_questions(questions))
    ]
    sampling = Sampling(1.0, 16)
    first = bench.sampler.batch(draws, sampling, "batch.jsonl", "collect")
    own = len(bench.engine.requests)
    again = bench.sampler.batch(draws, sampling, "batch.jsonl", "collect")
    assert first == again
    assert len(bench.engine.requests) == own, "a stored batch is not sampled again"
    requests = [Request(draw.prompt_ids, draw.seed) for draw in draws]
    texts = [bench.roles.decode(one.token_ids) for one in bench.sampler.responses(requests, sampling)]
    items = [(draw.question, text) for draw, text in zip(draws, texts, strict=True)]
    return {
        "graded": [(one.question.id, bench.roles.decode(one.token_ids), str(one.verdict)) for one in first],
        "sampled": own,
        "texts": texts,
        "verdicts": [str(verdict) for verdict in together(bench.grade)(items)],
        "ledger": bench.ledger.totals()["responses"],
        "graded_here": len(bench.grade.texts),
    }


def write(folder: Path, recipe: Path) -> dict[str, Any]:
    """A run folder is opened and written to; every process looks before and reads after."""
    settings = load_recipe(recipe, [])
    with RunDir.open(folder, settings) as run:
        seen = run.path("facts.json").exists()
        if not seen:
            run.write_json("facts.json", {"by": ranks.rank()})
        run.write_jsonl("rows.jsonl", [{"by": ranks.rank()}])
        run.append_jsonl("log.jsonl", {"by": ranks.rank()})
        run.mark_done("collect")
        Ledger(run.path("ledger.jsonl")).record("collect", "all", responses=3)
        found = {"seen": seen, "facts": run.read_json("facts.json"), "rows": run.read_jsonl("rows.jsonl")}
        ranks.barrier()
    return found


def fail(on: int, how: str) -> None:
    """One process fails while the others wait for it."""
    if ranks.rank() == on:
        time.sleep(0.2)
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise UserError("the disk of this one is full", "here", "make room")
    ranks.barrier()


def measure(folder: Path, tree: Path) -> tuple[str, float | None, float]:
    """What is measured, and what the ledger counts, while the machine's counter goes up by 2 joules."""
    file = tree / "intel-rapl:0/energy_uj"
    with measuring([], tree) as meter:
        ledger = Ledger(folder / "ledger.jsonl", meter, devices=ranks.count())
        watch = ledger.start()
        ranks.barrier()
        if ranks.is_first():
            file.write_text(f"{int(file.read_text()) + 2_000_000}\n")
        ranks.barrier()
        spent = watch.read()
        ledger.record("srt", "a", seconds=1.5, joules=spent.joules)
        return meter.sources, ledger.joules("srt"), ledger.by_stage()["srt"]["device_seconds"]
