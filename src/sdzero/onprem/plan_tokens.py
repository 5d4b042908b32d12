"""What a recipe samples and trains on: responses, sequences and tokens of each stage, before it ran.

The counts are the recipe's; how long responses are, and how many are right, is assumed or measured.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdzero.errors import UserError, unknown_name
from sdzero.recipe import Recipe
from sdzero.recipe_base import OptimizerSettings
from sdzero.recipe_baselines import OnPolicySettings

PHRASE_TOKENS = 12
"""Of a control phrase with its blank lines; both of the paper's have 9 to 16, by the tokenizer."""

PROMPT_TOKENS = 200
"""Of a question with its template: assumed."""

RIGHT_SHARE = 0.5
"""Of responses: assumed. Half of the paper's initial responses are wrong (arXiv 2604.12002, section 4)."""

SHARES = {"base": 0.23, "revised": 0.23, "student": 0.37, "srt": 0.52, "sdzero": 0.21}
"""Mean length of a response by whom, as a share of the longest that training allows. From the paper's
Qwen3-4B on AIME24, first responses, of 16,384 tokens: base 3,708, SRT 8,458, SD-Zero 3,518; a student in
phase 2 begins at SRT's length and ends at SD-Zero's. That a revision is as long as a first response is
assumed."""


@dataclass(frozen=True)
class Lengths:
    """Mean tokens of a prompt, and of a response: of the base model, a revision, the student over phase 2,
    the SRT model and the final one. `right` is the share of right responses. `source` says where they are
    from."""

    prompt: float
    base: float
    revised: float
    student: float
    srt: float
    sdzero: float
    right: float
    source: str


def assumed_lengths(recipe: Recipe) -> Lengths:
    """Lengths as shares of the recipe's longest response in training."""
    longest = recipe.collect.max_new_tokens
    means = {name: max(1.0, share * longest) for name, share in SHARES.items()}
    means["student"] = max(1.0, SHARES["student"] * recipe.distill.max_new_tokens)
    return Lengths(
        prompt=PROMPT_TOKENS,
        **means,
        right=RIGHT_SHARE,
        source="assumed: shares of the longest response in training, from the paper's lengths on AIME24",
    )


def with_given(
    lengths: Lengths, mean_tokens: Sequence[str], prompt_tokens: float | None, right: float | None
) -> Lengths:
    """The lengths with what the user gave: `4000` for all responses, or `base=3000`, one after the other.

    Raises UserError for a name that is not known or a number that is none.
    """
    names = list(SHARES)
    changed: dict[str, float] = {}
    for text in mean_tokens:
        name, equals, number = text.rpartition("=")
        if equals and name not in names:
            raise unknown_name("kind of response", name, names, "--mean-tokens")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not value > 0 or not math.isfinite(value):
            raise UserError(f"`{text}` gives no length", "--mean-tokens", "write it like 4000 or base=4000")
        changed |= {name: value} if equals else dict.fromkeys(names, value)
    if prompt_tokens is not None:
        changed["prompt"] = prompt_tokens
    if right is not None:
        changed["right"] = right
    if not changed:
        return lengths
    return replace(lengths, **changed, source=f"{lengths.source}; given: {', '.join(changed)}")


@dataclass(frozen=True)
class Sample:
    """Responses to be sampled: how many, from how many distinct prompts, of how many tokens on average and at
    most, and in batches of how many (`unit`: what the engine is asked for at one time)."""

    responses: int
    prompts: int
    prompt: float
    response: float
    longest: int
    unit: int

    @property
    def tokens(self) -> float:
        """Sampled, all together."""
        return self.responses * self.response


@dataclass(frozen=True)
class Train:
    """Sequences that go through the model and back: how many in all epochs, their tokens, the target tokens
    of each, and the lengths of the sequences that the teacher reads for each."""

    sequences: float
    tokens: float
    targets: float
    teacher_reads: tuple[float, ...] = ()


@dataclass(frozen=True)
class StageWork:
    """One stage, by its name in the ledger."""

    name: str
    samples: tuple[Sample, ...] = ()
    trains: tuple[Train, ...] = ()

    @property
    def responses(self) -> int:
        """Sampled."""
        return sum(sample.responses for sample in self.samples)

    @property
    def sampled_tokens(self) -> float:
        """Of them."""
        return sum(sample.tokens for sample in self.samples)

    @property
    def trained_tokens(self) -> float:
        """Target tokens, each epoch anew, as the ledger counts them."""
        return sum(train.sequences * train.targets for train in self.trains)

    @property
    def teacher_tokens(self) -> float:
        """Read by the teacher."""
        return sum(train.sequences * sum(train.teacher_reads) for train in self.trains)


def stages_of(recipe: Recipe, lengths: Lengths) -> list[StageWork]:
    """The stages of `sdzero run`, in their order; those that the recipe leaves out are not there."""
    stages = [labels(recipe, lengths)]
    if recipe.srt.checkpoint is None:
        stages += [collect(recipe, lengths), srt(recipe, lengths)]
    stages += [distill(recipe, lengths), tuning(recipe, lengths)]
    if recipe.rft.enabled:
        stages.append(rft(recipe, lengths, budget_of(recipe, lengths)))
    return [stage for stage in [*stages, evaluate(recipe, lengths)] if stage.samples or stage.trains]


def budget_of(recipe: Recipe, lengths: Lengths) -> int:
    """Responses that each method may sample: the recipe's, or what SD-Zero samples."""
    if recipe.budget.responses is not None:
        return recipe.budget.responses
    own = distill(recipe, lengths).responses
    return own if recipe.srt.checkpoint else own + collect(recipe, lengths).responses


def methods_of(recipe: Recipe, lengths: Lengths) -> dict[str, list[StageWork]]:
    """The training stages of SD-Zero and of each baseline that the recipe has settings for, at one budget."""
    budget = budget_of(recipe, lengths)
    own = [stage for stage in stages_of(recipe, lengths) if stage.name in ("collect", "srt", "distill")]
    found = {"sdzero": own, "rft": [rft(recipe, lengths, budget)]}
    if recipe.grpo is not None:
        found["grpo"] = [grpo(recipe, lengths, budget)]
    if recipe.sdft is not None:
        found["sdft"] = [sdft(recipe.sdft, lengths, budget)]
    return found


# ---- the stages ----


def _rounds(recipe: Recipe) -> list[int]:
    """Initial responses of each round."""
    return [
        recipe.collect.initial_of(recipe.data.n1, round_) for round_ in range(1, recipe.collect.rounds + 1)
    ]


def labels(recipe: Recipe, lengths: Lengths) -> StageWork:
    """The votes of label-free mode."""
    own, other = recipe.labels, recipe.collect
    if not own.is_majority:
        return StageWork("labels")
    questions = recipe.data.n1 + recipe.data.n2
    longest = own.max_new_tokens or other.max_new_tokens
    unit = own.batch_size or other.batch_size
    samples = Sample(
        questions * own.samples, questions, lengths.prompt, min(lengths.base, longest), longest, unit
    )
    return StageWork("labels", (samples,))


def collect(recipe: Recipe, lengths: Lengths) -> StageWork:
    """Initial responses and their revisions. None is left out as truncated or over-long: the most there can
    be (with `revise_correct` off, those that are right are)."""
    settings = recipe.collect
    initial = sum(_rounds(recipe))
    longest = settings.max_new_tokens
    base, revised = min(lengths.base, longest), min(lengths.revised, longest)
    revised_of = initial if settings.revise_correct else math.ceil(initial * (1 - lengths.right))
    prompts = min(initial, recipe.data.n1)
    return StageWork(
        "collect",
        (
            Sample(initial, prompts, lengths.prompt, base, longest, settings.batch_size),
            Sample(
                revised_of * settings.revisions_per_initial,
                revised_of,
                lengths.prompt + base + PHRASE_TOKENS,
                revised,
                longest,
                settings.batch_size,
            ),
        ),
    )


def traces(recipe: Recipe, lengths: Lengths) -> list[int]:
    """Kept traces up to each round."""
    settings = recipe.collect
    share = 1.0 if settings.revise_correct else 1 - lengths.right
    kept, found = 0, []
    for initial in _rounds(recipe):
        right = round(initial * share * settings.revisions_per_initial * lengths.right)
        kept += min(right, settings.target_traces or right)
        found.append(kept)
    return found


def srt(recipe: Recipe, lengths: Lengths) -> StageWork:
    """Each round trains on all traces so far."""
    settings, longest = recipe.srt, recipe.collect.max_new_tokens
    base, revised = min(lengths.base, longest), min(lengths.revised, longest)
    whole = lengths.prompt + base + PHRASE_TOKENS + revised
    generated = base + PHRASE_TOKENS + revised
    trains = []
    for kept in traces(recipe, lengths):
        passes = kept * settings.epochs
        if settings.schedule_of_losses == "two_stage":
            trains.append(Train(passes * (1 - lengths.right), whole, generated))
            trains.append(Train(passes, whole, revised))
        elif settings.generation_on == "wrong" or not settings.generation_weight:
            both = (1 - lengths.right) if settings.generation_weight else 0.0
            trains.append(Train(passes * both, whole, generated))
            trains.append(Train(passes * (1 - both), whole, revised))
        else:
            trains.append(Train(passes, whole, generated))
    return StageWork("srt", (), tuple(trains))


def distill(recipe: Recipe, lengths: Lengths) -> StageWork:
    """One response a question and epoch; the teacher reads x + y + P_r + y, for a contrast more."""
    settings = recipe.distill
    responses = recipe.data.n2 * settings.epochs
    student = min(lengths.student, settings.max_new_tokens)
    read = student + lengths.prompt
    reads: tuple[float, ...] = (read + PHRASE_TOKENS + student,)
    if settings.contrast:
        reads = (*reads, read + PHRASE_TOKENS + student, read)
    trains = [Train(responses, read, student, reads)]
    if settings.rehearsal_weight:
        longest = recipe.collect.max_new_tokens
        base, revised = min(lengths.base, longest), min(lengths.revised, longest)
        rehearsed = math.ceil(recipe.data.n2 / settings.batch_size) * settings.epochs
        trains.append(
            Train(
                rehearsed * settings.rehearsal_batch_size,
                lengths.prompt + base + PHRASE_TOKENS + revised,
                revised,
            )
        )
    sample = Sample(
        responses, responses, lengths.prompt, student, settings.max_new_tokens, settings.batch_size
    )
    return StageWork("distill", (sample,), tuple(trains))


def tuning(recipe: Recipe, lengths: Lengths) -> StageWork:
    """Scores on the tuning set while phase 2 trains."""
    every, settings = recipe.distill.evaluate_every, recipe.evaluate
    if every is None:
        return StageWork("tuning")
    steps = math.ceil(recipe.data.n2 / recipe.distill.batch_size) * recipe.distill.epochs
    responses = (steps // every) * recipe.data.tuning * settings.k
    length = min(lengths.student, settings.max_new_tokens)
    sample = Sample(
        responses, responses, lengths.prompt, length, settings.max_new_tokens, settings.batch_size
    )
    return StageWork("tuning", (sample,) if responses else ())


def evaluate(recipe: Recipe, lengths: Lengths) -> StageWork:
    """Every model of the run on its questions, k responses each, and one revision."""
    settings = recipe.evaluate
    questions = getattr(recipe.data, settings.on)
    of_models = [lengths.base, lengths.srt, lengths.sdzero] + [lengths.base] * recipe.rft.enabled
    samples = []
    for mean in of_models:
        length = min(mean, settings.max_new_tokens)
        common = length, settings.max_new_tokens, settings.batch_size
        samples.append(Sample(questions * settings.k, questions, lengths.prompt, *common))
        samples.append(Sample(questions, questions, lengths.prompt + length + PHRASE_TOKENS, *common))
    return StageWork("evaluate", tuple(samples))


def rft(recipe: Recipe, lengths: Lengths, budget: int) -> StageWork:
    """As many responses of the base model as the budget has; those that are right are trained on."""
    longest = recipe.collect.max_new_tokens
    length = min(lengths.base, longest)
    questions = min(budget, recipe.data.n1 + recipe.data.n2)
    sample = Sample(budget, questions, lengths.prompt, length, longest, recipe.collect.batch_size)
    kept = budget * lengths.right * recipe.rft.epochs
    return StageWork("rft", (sample,), (Train(kept, lengths.prompt + length, length),))


def grpo(recipe: Recipe, lengths: Lengths, budget: int) -> StageWork:
    """Every response is trained on once; with a `kl_weight` the base model reads it too."""
    settings = recipe.grpo
    assert settings is not None, "the recipe has a section `grpo`"
    responses = budget // settings.batch_size * settings.batch_size
    length = min(lengths.base, settings.max_new_tokens)
    read = lengths.prompt + length
    prompts = responses // settings.responses_per_question
    sample = Sample(responses, prompts, lengths.prompt, length, settings.max_new_tokens, settings.batch_size)
    reads = (read,) if settings.kl_weight else ()
    return StageWork("grpo", (sample,), (Train(responses, read, length, reads),))


def sdft(settings: OnPolicySettings, lengths: Lengths, budget: int) -> StageWork:
    """One response a question, epoch after epoch; the teacher reads the question with its reference,
    which is taken to be as long as a response."""
    length = min(lengths.base, settings.max_new_tokens)
    read = lengths.prompt + length
    sample = Sample(budget, budget, lengths.prompt, length, settings.max_new_tokens, settings.batch_size)
    return StageWork("sdft", (sample,), (Train(budget, read, length, (read + length,)),))


def micro_batch(settings: OptimizerSettings, processes: int) -> int:
    """Sequences of a micro-batch of one process.

    Raises UserError if the processes cannot have equal shares.
    """
    own, rest = divmod(settings.batch_size, processes)
    if rest:
        raise UserError(
            f"batch_size ({settings.batch_size}) is no multiple of the number of devices ({processes})",
            "--hardware",
            "change one of them",
        )
    return settings.micro_batch_of(own)
