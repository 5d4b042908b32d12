"""RFT, rejection-sampling fine-tuning: training on the model's own verified-correct responses.

As many responses are sampled from the base model as SD-Zero samples; the correct ones are trained on
once each, with weight 1 on every token of the response, end token included
(`sdzero.method.srt.train_weighted`, a subclass of TRL's SFTTrainer). What SD-Zero gains over it cannot
come from more samples or from filtering.
"""

from collections.abc import Sequence

from sdzero.errors import UserError
from sdzero.method.graded import Draw, Graded, GradedSampler
from sdzero.method.roles import Roles, WeightedSequence
from sdzero.questions.question import Question
from sdzero.recipe_base import SamplingSettings
from sdzero.recipe_baselines import RftSettings
from sdzero.rollout.engine import Sampling, seed_of
from sdzero.run_context import Budget, RunContext
from sdzero.verify.verdict import Verdict


def train_rft(context: RunContext, name: str, settings: RftSettings, budget: Budget) -> None:
    """Sample from the base model within the budget, and train it on what is right; kept in `name`.

    Trainings at several rates in the same run (`rft-x0.5`, `rft-x2`) share the responses, which are kept
    and counted once, under `rft`.
    """
    if context.run.is_done(name):
        return
    questions = context.training_questions
    context.report(f"{name}: {budget} on {len(questions)} questions")
    shared = name.partition("-x")[0]
    sampler = context.sampler(context.load(context.recipe.model.path))
    graded = sample_within(
        budget, questions, sampler, context.recipe.collect, f"{shared}/responses", shared, context.recipe.seed
    )
    sampler.rest()
    sequences = rft_sequences([(g.prompt_ids, g.token_ids, g.verdict) for g in graded], context.roles)
    context.train_on(name, [sequences], settings)


def sample_within(
    budget: Budget,
    questions: Sequence[Question],
    sampler: GradedSampler,
    settings: SamplingSettings,
    folder: str,
    stage: str,
    seed: int,
) -> list[Graded]:
    """Graded responses, question after question and round after round, until the budget is spent.

    A budget of responses is spent to the last one, one of tokens to within a response or so: the last
    batches are made as small as what is left, by the mean length so far.
    """
    sampling = Sampling(settings.temperature, settings.max_new_tokens, settings.top_p)
    graded: list[Graded] = []
    spent, number = 0, 0
    while spent < budget.amount:
        left = budget.amount - spent
        if budget.match == "tokens":
            mean = spent / len(graded) if graded else settings.max_new_tokens
            left = max(1, int(left / mean))
        places = range(len(graded), len(graded) + min(settings.batch_size, left))
        draws = []
        for place in places:
            round_, position = divmod(place, len(questions))
            question = questions[position]
            prompt = tuple(sampler.roles.generator_prompt(question))
            draws.append(Draw(question, prompt, seed_of(seed, "rft", question.id, round_), round_))
        if not number:
            everything = [(q, sampler.roles.generator_prompt(q)) for q in questions]
            sampler.check_fits(everything, sampling.max_new_tokens)
        batch = sampler.batch(draws, sampling, f"{folder}/batch-{number:05d}.jsonl", stage)
        graded += batch
        spent += len(batch) if budget.match == "responses" else sum(g.sampled_tokens for g in batch)
        number += 1
    return graded


def rft_sequences(
    graded: Sequence[tuple[Sequence[int], Sequence[int], Verdict]], roles: Roles
) -> list[WeightedSequence]:
    """Training sequences from (prompt ids, response ids, verdict), in the order given.

    Only verified-correct responses are kept; of equal responses to one prompt, the first.
    Raises UserError if none is left.
    """
    kept: dict[tuple[tuple[int, ...], tuple[int, ...]], WeightedSequence] = {}
    for prompt_ids, response_ids, verdict in graded:
        pair = (tuple(prompt_ids), tuple(response_ids))
        if verdict.reward and pair not in kept:
            kept[pair] = roles.response_sequence(*pair)
    if not kept:
        raise UserError(
            f"none of the {len(graded)} sampled responses is correct, so there is nothing to train on",
            where="rft",
            todo="use easier questions or a stronger model, set rft.enabled=false, or leave rft out",
        )
    return list(kept.values())
