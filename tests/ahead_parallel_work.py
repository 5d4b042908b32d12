"""What the tests of rollouts one step ahead with several processes run in each of them."""

from pathlib import Path
from typing import Any

import torch

from ahead_bench import EngineElsewhere
from data_parallel_work import tiny_model, weights_of
from distill_bench import QUESTIONS, Bench, perturbed


def sampled_elsewhere(folder: Path) -> dict[str, Any]:
    """Three steps whose responses an engine of its own samples, while the step before is updated."""
    bench = Bench(
        folder,
        QUESTIONS[:10],
        teacher=perturbed(tiny_model()),
        dtype=torch.float64,
        batch_size=4,
        micro_batch_size=1,
        rollouts_ahead=1,
    )
    bench.sampler.engine = engine = EngineElsewhere(bench)
    bench.train()
    return {"student": weights_of(bench.model), "threads": engine.threads}
