"""`sdzero doctor`'s self-test: the user's own model as its own teacher, on two questions of the recipe.

In the same context student and teacher are one distribution, so the divergence of each token is 0 to rounding
(design, contract 2); whatever shifts positions, cuts a sequence or masks a token wrongly makes it large. In
the Reviser's context, which the teacher reads in phase 2, it must not be 0: the control phrase would then
reach nobody.
"""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sdzero.onprem.findings import Finding, Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sdzero.method.roles import DistillationPair, Roles
    from sdzero.questions.question import Question
    from sdzero.recipe import Recipe

NAME = "self-test"
QUESTIONS = 2
NEW_TOKENS = 24
TOLERANCE = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 1e-2}
"""The largest divergence of a token, in nats, that is rounding."""
QUICK = "not done (--quick)"


def self_test(subject: Subject) -> Iterator[Finding]:
    """The recipe's model diverges from itself by 0 in the same context, and by more in the Reviser's."""
    if subject.recipe is None or {"data", "model", "tokenizer", "room", "gpu"} & subject.failed:
        return
    if subject.quick:
        yield Finding(NAME, True, QUICK)
        return
    from sdzero.method.hidden import check_output_head
    from sdzero.method.roles import Roles
    from sdzero.models import load_model, load_tokenizer
    from sdzero.questions.sources import load_questions
    from sdzero.questions.splits import split_questions

    started = time.monotonic()
    recipe = subject.recipe
    roles = Roles(load_tokenizer(recipe.model.path), recipe.phrases, recipe.chat)
    questions = load_questions(recipe.data, empty_answers=recipe.labels.is_majority)
    chosen = split_questions(questions, recipe.data).n2[:QUESTIONS]
    model = load_model(recipe.model.path, recipe.model)
    model.train(False)
    check_output_head(model)
    responses = sample(model, roles, chosen)
    prompts = [tuple(roles.generator_prompt(question)) for question in chosen]
    both = list(zip(prompts, responses, strict=True))
    same = divergences(model, roles, [roles.reference_pair(x, x, y) for x, y in both], recipe)
    pairs = [roles.distillation_pair(x, y, reward) for x, y in both for reward in (0, 1)]
    reviser = divergences(model, roles, pairs, recipe)
    seconds = time.monotonic() - started
    yield judge(same, reviser, TOLERANCE[recipe.model.dtype], seconds)


def judge(same: Sequence[float], reviser: Sequence[float], tolerance: float, seconds: float) -> Finding:
    """What the divergences of the tokens, in nats, say: in the same context, and in the Reviser's."""
    largest, mean = max(map(abs, same)), sum(reviser) / len(reviser)
    detail = (
        f"divergence from itself: at most {largest:.1e} nats a token in the same context, {mean:.3f} on"
        f" average in the Reviser's ({seconds:.1f} s)"
    )
    if not largest <= tolerance:
        return Finding(
            NAME,
            False,
            f"{detail}; up to {tolerance:g} would be rounding",
            "try model.attention=eager, model.packing=off and model.dtype=float32: one of them does not fit"
            " this model; if none helps, report it as a fault of sdzero",
        )
    if not mean > tolerance:
        return Finding(
            NAME,
            False,
            f"{detail}: the control phrase changes nothing",
            "look at `phrases`, and at whether the chat template keeps what follows a response",
        )
    return Finding(NAME, True, detail)


def sample(
    model: "PreTrainedModel", roles: "Roles", questions: Sequence["Question"]
) -> list[tuple[int, ...]]:
    """A short response to each question, token ids, greedy."""
    from sdzero.rollout.engine import Request, Sampling
    from sdzero.rollout.transformers_engine import TransformersEngine

    engine = TransformersEngine(model, [roles.end_token_id], roles.end_token_id, len(questions))
    requests = [Request(tuple(roles.generator_prompt(question)), 0) for question in questions]
    return [one.token_ids for one in engine.generate(requests, Sampling(0.0, NEW_TOKENS))]


def divergences(
    model: "PreTrainedModel", roles: "Roles", pairs: Sequence["DistillationPair"], recipe: "Recipe"
) -> list[float]:
    """The divergence of each target token between the model in the student's context and the same model in
    the teacher's, in nats, by the recipe's direction, padded or packed as in training."""
    import torch

    from sdzero.method.micro_batches import make_micro_batch
    from sdzero.method.objectives import TeacherDivergence
    from sdzero.method.teacher import Teacher
    from sdzero.packed_attention import packs_rows

    batch = make_micro_batch([(pair, 0) for pair in pairs], [], roles.end_token_id, packs_rows(model))
    placed = {
        key: value.to(model.device) if isinstance(value, torch.Tensor) else value
        for key, value in batch.items()
    }
    settings = recipe.distill
    backend = settings.divergence_backend
    objective = TeacherDivergence(settings.divergence, settings.chunk_tokens, backend=backend)
    with torch.no_grad():
        losses = objective.token_losses(model, Teacher(model, recipe.model.path), placed, None)
    return [float(value) for value in losses.measure_T]
