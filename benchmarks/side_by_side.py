"""Our trainer beside TRL's and beside the floor: the update alone, and whole steps."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from entries import Entry, Found
from floor import Floor, lengths_of, update_products
from peers import Peer, PeerStep
from shapes import SHAPES, Shape, make_folder, questions_of, recorded_responses, roles_of, sizes_at
from step import our_step
from timing import Seconds, alternate, medians
from transformers import AutoTokenizer

from sdzero.method.objectives import ReferenceDivergence

AT_MOST_FLOOR = 1.3
AT_LEAST_AS_FAST = 2.0
SAME_CONTEXT = "ours, teacher reads x + y"


def update(name: str, runs: int, peers: Sequence[Peer] = (), batch: int | None = None) -> Found:
    """Teacher, student, backward and optimizer on recorded responses: against the floor, against peers.

    Against Distillation, whose teacher reads x + y, our trainer does the same (`SAME_CONTEXT`).
    """
    shape = SHAPES[name] if batch is None else replace(SHAPES[name], batch=batch)
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        workplace = Path(place)
        folder = make_folder(shape, workplace / "model")
        roles = roles_of(AutoTokenizer.from_pretrained(folder))
        questions = questions_of(shape, roles)
        recorded = recorded_responses(shape, roles, questions)
        floor = Floor(update_products(sizes_at(shape), batch_lengths(shape, roles, questions)))
        ours = stack.enter_context(our_step(shape, folder, workplace, recorded=recorded))
        contestants: dict[str, Callable[[], Seconds]] = {
            "floor": lambda: {"update": floor.seconds()},
            "ours": ours.turn,
        }
        theirs = {peer: PeerStep(peer, shape, folder, workplace, recorded) for peer in peers}
        contestants |= {peer: step.turn for peer, step in theirs.items()}
        if "distillation" in theirs:
            plain = ReferenceDivergence("reverse", ours.trainer.args.chunk_tokens, "{question}", "answer")
            same = our_step(shape, folder, workplace, recorded=recorded, objective=plain)
            contestants[SAME_CONTEXT] = stack.enter_context(same).turn
        found = medians(alternate(contestants, runs))
        losses = {"ours": ours.loss} | {peer: step.loss for peer, step in theirs.items()}
    label = f"update-{name}" if batch is None else f"update-{name}-batch-{batch}"
    seconds = {who: own["update"] for who, own in found.items()}
    details = {label: {"seconds": seconds, "losses": losses}}
    return Found(update_entries(label, seconds, runs), details)


def batch_lengths(shape: Shape, roles: Any, questions: Sequence[Any]) -> Any:
    """The lengths of the batch's sequences, with responses of full length."""
    prompts = [len(roles.generator_prompt(question)) for question in questions]
    return lengths_of(prompts, len(roles.control_phrase_ids(0)), [shape.response_tokens] * shape.batch)


def whole(name: str, runs: int, as_it_comes: bool = False, updates: bool = False) -> Found:
    """Whole steps, each trainer sampling for itself: against SDFT with the same contexts, or as it comes.

    With `updates` also what is left of these steps without their rollouts, beside the floor: the figures of
    `update`, where steps are too long to be made twice, and to warm up.
    """
    shape = SHAPES[name]
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        workplace = Path(place)
        folder = make_folder(shape, workplace / "model")
        ours = stack.enter_context(our_step(shape, folder, workplace))
        theirs = {"sdft": PeerStep("sdft", shape, folder, workplace)}
        if as_it_comes:
            theirs["sdft-as-it-comes"] = PeerStep("sdft", shape, folder, workplace, as_it_comes=True)
        turns = {"ours": ours.turn} | {peer: step.turn for peer, step in theirs.items()}
        if updates:
            floor = Floor(update_products(sizes_at(shape), batch_lengths(shape, ours.roles, ours.questions)))
            turns["floor"] = lambda: {"update": floor.seconds()}
        found = medians(alternate(turns, runs, warm_up=not updates))
    entries = []
    for peer in theirs:
        target = AT_LEAST_AS_FAST if name in ("24m", "70m") and peer == "sdft" else None
        ratio = found[peer]["step"] / found["ours"]["step"]
        entries.append(Entry(f"step-{name}/{peer}", ratio, target, "higher", runs))
    details: dict[str, Any] = {f"step-{name}": {"seconds": found}}
    if updates:
        seconds = {who: own["update"] for who, own in found.items()}
        entries += update_entries(f"update-{name}", seconds, runs)
        details[f"update-{name}"] = {"seconds": seconds}
    return Found(entries, details)


def update_entries(label: str, seconds: Mapping[str, float], runs: int) -> list[Entry]:
    """Ours against the floor, and each peer against ours; `seconds` are of updates."""
    target = AT_MOST_FLOOR if label in ("update-24m", "update-70m") else None
    entries = [Entry(f"{label}/floor", seconds["ours"] / seconds["floor"], target, "lower", runs)]
    for peer in ("sdft", "sdpo", "distillation"):
        if peer in seconds:
            base = seconds[SAME_CONTEXT if peer == "distillation" else "ours"]
            promised = AT_LEAST_AS_FAST if (label, peer) == ("update-70m", "sdft") else None
            entries.append(Entry(f"{label}/{peer}", seconds[peer] / base, promised, "higher", runs))
    return entries
