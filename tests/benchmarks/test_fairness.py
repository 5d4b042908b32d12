"""Our trainer and TRL's do the same work: the same loss and gradient on the same batch."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peers import PeerStep
from shapes import SHAPES, questions_of, recorded_responses, roles_of
from split import PARTS
from step import our_step
from transformers import AutoTokenizer

from sdzero import tiny
from sdzero.method.objectives import ReferenceDivergence

SHAPE = replace(SHAPES["tiny"], batch=4, response_tokens=16)


@pytest.fixture(scope="module")
def recorded() -> Any:
    roles = roles_of(AutoTokenizer.from_pretrained(tiny.model_folder()))
    return recorded_responses(SHAPE, roles, questions_of(SHAPE, roles))


def disturb(model: torch.nn.Module) -> None:
    """Move the student away from its teacher, always by the same."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("peer", ["sdft", "sdpo", "distillation"])
def test_the_loss_and_its_gradient_are_trls(tmp_path: Path, recorded: Any, peer: Any) -> None:
    plain = ReferenceDivergence("reverse", 7, "{question}", "answer") if peer == "distillation" else None
    theirs = PeerStep(peer, SHAPE, tiny.model_folder(), tmp_path, recorded)
    disturb(theirs.model)
    theirs.turn()
    with our_step(SHAPE, tiny.model_folder(), tmp_path, recorded=recorded, objective=plain) as ours:
        disturb(ours.model)
        took = ours.turn()
    [logged] = [row for row in theirs.trainer.state.log_history if "loss" in row]
    assert ours.loss > 0.01
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    assert ours.logged[-1]["grad_norm"] == pytest.approx(float(logged["grad_norm"]), rel=1e-3)
    # Where the time of a step went: all of it, and no more.
    assert sum(took[part] for part in PARTS) == pytest.approx(took["step"])
    assert took["teacher"] > 0
    assert took["student"] > 0
    assert took["backward"] > 0
    assert took["optimizer"] > 0
    assert min(took.values()) >= 0


def test_all_read_the_same_tokens(tmp_path: Path, recorded: Any, monkeypatch) -> None:
    """TRL's teacher reads x + y + P_r + y in the same ids as ours."""
    theirs = PeerStep("sdft", SHAPE, tiny.model_folder(), tmp_path, recorded)
    seen: dict[str, Any] = {}
    compute = theirs.trainer.compute_loss

    def watched(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        seen.update(inputs)
        return compute(model, inputs, *args, **kwargs)

    monkeypatch.setattr(theirs.trainer, "compute_loss", watched)
    theirs.turn()
    roles = roles_of(theirs.tokenizer)
    rows = zip(seen["teacher_input_ids"], seen["teacher_attention_mask"], strict=True)
    read = {tuple(ids[mask.bool()].tolist()) for ids, mask in rows}
    wanted = {roles.distillation_pair(x, y, 0).teacher_ids for x, y in recorded.items()}
    assert read == wanted


def test_whole_steps_are_sampled_by_each_for_itself(tmp_path: Path) -> None:
    theirs = PeerStep("sdft", SHAPE, tiny.model_folder(), tmp_path)
    with our_step(SHAPE, tiny.model_folder(), tmp_path) as ours:
        for took in (ours.turn(), theirs.turn()):
            assert 0 < took["rollout"] < took["step"]
            assert took["rollout"] + took["update"] == pytest.approx(took["step"])
        first = ours.logged[-1]["rollout_seconds"]
        ours.turn()
        assert ours.logged[-1]["rollout_seconds"] > 0.1 * first  # sampled again, not read again
