"""The embedded model's responses stay what they were when the published scores were measured.

`tests/golden/rollouts.json` was sampled through the model's own forward pass, every row prefilled for
itself, at float32: 40 questions, three seeds each. A response may differ from it only if rounding falls
between two tokens, which at these 2,500 tokens has a chance below one in a hundred on another processor.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from sdzero import tiny
from sdzero.rollout.decode_step import can_pack
from sdzero.rollout.engine import Request, Sampling
from sdzero.rollout.transformers_engine import TransformersEngine

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "rollouts.json").read_text(encoding="utf-8"))
REQUESTS = [Request(tuple(row["prompt"]), row["seed"]) for row in GOLDEN["rollouts"]]
SAMPLING = Sampling(temperature=GOLDEN["temperature"], max_new_tokens=GOLDEN["max_new_tokens"])


@pytest.fixture(scope="module")
def embedded() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(tiny.model_folder(), dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cache": "dynamic"},
        {"refill": True},
        pytest.param(
            {"packed": True},
            marks=pytest.mark.skipif(
                not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN"
            ),
        ),
    ],
    ids=str,
)
def test_responses_of_the_embedded_model_stay_the_same(embedded: PreTrainedModel, options: dict) -> None:
    if options.get("packed"):
        assert can_pack(embedded)
    engine = TransformersEngine(embedded, [GOLDEN["end"]], GOLDEN["pad"], GOLDEN["batch_size"], **options)
    responses = engine.generate(REQUESTS, SAMPLING)
    assert [list(response.token_ids) for response in responses] == [
        row["response"] for row in GOLDEN["rollouts"]
    ]
    assert {response.stop_reason for response in responses} == {"end", "length"}
