"""Sample, grade, keep: the one loop behind collection, distillation, baselines and evaluation.

A batch is the unit of resuming. When it is finished it is written to the run folder, and a run that
starts again reads it instead of sampling it again.

Several processes (`sdzero.ranks`) share a batch out: each samples and grades its part with an engine and a
verifier of its own, and then all of them have the whole. Whoever calls the sampler sees no difference.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from transformers import PreTrainedModel

from sdzero import ranks, stopping
from sdzero.energy import Spent
from sdzero.errors import UserError
from sdzero.ledger import Ledger
from sdzero.method.grading import Grade, GradingAhead, together
from sdzero.method.roles import Roles, trim_repeated_tail
from sdzero.questions.question import Question
from sdzero.rollout.engine import Request, Response, RolloutEngine, Sampling, streamed
from sdzero.run_dir import RunDir
from sdzero.sharded import whole_weights
from sdzero.verify.verdict import Outcome, Verdict

Progress = Callable[[str, int, int], None]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Draw:
    """One response to sample: for which question, on which prompt, with which seed.

    `index` tells several draws for one question apart.
    """

    question: Question
    prompt_ids: tuple[int, ...]
    seed: int
    index: int = 0


@dataclass(frozen=True)
class Graded:
    """A sampled response with its verdict. `token_ids` are the sampler's, cut only by trimming."""

    question: Question
    index: int
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    verdict: Verdict
    sampled_tokens: int
    trimmed: bool = False
    weight_version: int = 0

    @property
    def reward(self) -> int:
        """The binary reward."""
        return self.verdict.reward

    @property
    def truncated(self) -> bool:
        """Whether the length limit cut the response, so that it has no end token."""
        return self.verdict.outcome is Outcome.TRUNCATED


def _to_row(draw: Draw, graded: Graded) -> dict[str, Any]:
    return {
        "question": draw.question.id,
        "index": draw.index,
        "seed": draw.seed,
        "token_ids": list(graded.token_ids),
        "outcome": str(graded.verdict.outcome),
        "detail": graded.verdict.detail,
        "sampled_tokens": graded.sampled_tokens,
        "trimmed": graded.trimmed,
        "weight_version": graded.weight_version,
    }


_SAMPLED_AGAIN = "the same command samples its responses again"
_FIELDS = {
    "question": str,
    "index": int,
    "seed": int,
    "token_ids": list,
    "outcome": str,
    "detail": str,
    "sampled_tokens": int,
    "trimmed": bool,
    "weight_version": int,
}


def _from_row(draw: Draw, row: dict[str, Any], where: str) -> Graded:
    if not isinstance(row, dict) or any(not isinstance(row.get(key), own) for key, own in _FIELDS.items()):
        raise UserError(
            "a stored batch is damaged: this line is no response",
            where,
            f"restore the file from a copy, or remove it: {_SAMPLED_AGAIN}",
        )
    if (row["question"], row["index"], row["seed"]) != (draw.question.id, draw.index, draw.seed):
        raise UserError(
            "a stored batch holds other responses than this run asks for",
            where,
            "the data or the recipe changed under the run: start in a new folder",
        )
    return Graded(
        question=draw.question,
        index=draw.index,
        prompt_ids=draw.prompt_ids,
        token_ids=tuple(row["token_ids"]),
        verdict=Verdict(Outcome(row["outcome"]), row["detail"]),
        sampled_tokens=row["sampled_tokens"],
        trimmed=row["trimmed"],
        weight_version=row["weight_version"],
    )


class GradedSampler:
    """Samples and grades draws batch by batch, keeping finished batches in the run folder.

    `trim` cuts degenerate repeated tails (on token ids, before grading, so that what is kept is what
    was graded).
    """

    def __init__(
        self,
        engine: RolloutEngine,
        roles: Roles,
        grade: Grade,
        run: RunDir,
        ledger: Ledger,
        progress: Progress | None = None,
    ) -> None:
        self.engine = engine
        self.roles = roles
        self.grade = grade
        self.run = run
        self.ledger = ledger
        self._progress = progress
        self._model: PreTrainedModel | None = None

    def batches(
        self,
        draws: Sequence[Draw],
        sampling: Sampling,
        *,
        folder: str,
        stage: str,
        batch_size: int,
        trim: bool = False,
        enough: Callable[[list[Graded]], bool] | None = None,
    ) -> list[Graded]:
        """Sample and grade all draws, in order; stop early after a batch if `enough` says so.

        Raises UserError, before anything is sampled, if one of the prompts is over-long.
        """
        self.check_fits([(draw.question, draw.prompt_ids) for draw in draws], sampling.max_new_tokens)
        results: list[Graded] = []
        for start in range(0, len(draws), batch_size):
            name = f"{folder}/batch-{start // batch_size:05d}.jsonl"
            results += self.batch(draws[start : start + batch_size], sampling, name, stage, trim)
            if self._progress:
                self._progress(folder, min(start + batch_size, len(draws)), len(draws))
            if enough is not None and enough(results):
                break
        return results

    def batch(
        self, draws: Sequence[Draw], sampling: Sampling, name: str, stage: str, trim: bool = False
    ) -> list[Graded]:
        """Sample and grade one batch, or read it if it was finished before. `name` is its file."""
        stored = self.stored(draws, name)
        if stored is not None:
            return stored
        stopping.check()
        watch = self.ledger.start()
        own = self.share(draws)
        with stopping.together(), GradingAhead(self.grade) as grading:
            sampled = self.sample(own, sampling, grading, trim)
            graded = sampled.graded(grading.finish())
        graded = self.of_all(draws, own, graded, name)
        self.keep(draws, graded, name, stage, watch.read())
        return graded

    def share(self, rows: Sequence[Row]) -> list[Row]:
        """What this process samples of a batch: every world-th; all or nothing if one engine serves all."""
        if ranks.count() > 1 and self.engine.samples_elsewhere:
            return list(rows) if ranks.is_first() else []
        return ranks.own_share(rows)

    def of_all(
        self, draws: Sequence[Draw], share: Sequence[Draw], graded: Sequence[Graded], name: str
    ) -> list[Graded]:
        """The whole batch, for all processes, from what each has made of its share. All of them call it."""
        if ranks.count() == 1:
            return list(graded)
        rows = ranks.whole_of_shares([_to_row(d, g) for d, g in zip(share, graded, strict=True)])
        return [_from_row(draw, row, name) for draw, row in zip(draws, rows, strict=True)]

    def read_weights(self) -> None:
        """Have an engine that samples elsewhere read the weights of the next responses now, if it is this
        process that samples with it. All processes call it: sharded weights are gathered for it."""
        with whole_weights(self._model):
            if ranks.is_first():
                self.engine.read_weights()

    def responses(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Responses without verdicts, shared out in the same way; nothing is kept or counted."""
        own = self.share(requests)
        found = dict(pair for group in self._streamed(own, sampling) for pair in group)
        return ranks.whole_of_shares([found[place] for place in range(len(own))])

    def _streamed(
        self, requests: Sequence[Request], sampling: Sampling, weights_read: bool = False
    ) -> Iterator[list[tuple[int, Response]]]:
        with whole_weights(None if weights_read else self._model):
            yield from streamed(self.engine, requests, sampling)

    def stored(self, draws: Sequence[Draw], name: str) -> list[Graded] | None:
        """A batch that was finished before, from its file, or None. Raises UserError if it is another's."""
        if not self.run.path(name).exists():
            return None
        where = str(self.run.path(name))
        rows = self.run.read_jsonl(name, f"restore it from a copy, or remove it: {_SAMPLED_AGAIN}")
        if len(rows) != len(draws):
            raise UserError(
                f"a stored batch holds {len(rows)} responses, this run asks for {len(draws)}",
                where,
                "the data or the recipe changed under the run: start in a new folder",
            )
        return [
            _from_row(draw, row, f"{where}: line {line}")
            for line, (draw, row) in enumerate(zip(draws, rows, strict=True), 1)
        ]

    def keep(
        self, draws: Sequence[Draw], graded: Sequence[Graded], name: str, stage: str, spent: Spent
    ) -> None:
        """Count a finished batch in the ledger and write its file."""
        # Counted before it is kept: a process killed in between samples the batch again, and the count
        # is replaced. The other way round the batch would stay and its count would be lost.
        self.ledger.record(
            stage,
            name,
            responses=len(graded),
            sampled_tokens=sum(g.sampled_tokens for g in graded),
            seconds=spent.seconds,
            joules=spent.joules,
        )
        self.run.write_jsonl(name, [_to_row(d, g) for d, g in zip(draws, graded, strict=True)])

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        """Tell the engine that it samples with `model`'s weights, `steps` training steps further."""
        self.engine.take_weights(model, steps)
        self._model = model

    def rest(self) -> None:
        """Nothing is sampled in a while: the engine may give memory back."""
        self.engine.rest()

    def context_limit(self, max_context: int | None) -> int | None:
        """The smaller of the recipe's limit and the model's own context, in tokens."""
        limits = [limit for limit in (max_context, self.engine.max_context) if limit is not None]
        return min(limits, default=None)

    def check_fits(self, prompts: Iterable[tuple[Question, Sequence[int]]], max_new_tokens: int) -> None:
        """Raise UserError for a prompt that, with room for the response, is over the model's context."""
        limit = self.engine.max_context
        for question, prompt_ids in prompts:
            if limit is not None and len(prompt_ids) + max_new_tokens > limit:
                raise UserError(
                    f"a prompt of {len(prompt_ids)} tokens and a response of up to {max_new_tokens} do not"
                    f" fit the model's context of {limit} tokens",
                    f"question {question.id}",
                    "leave out over-long questions, lower max_new_tokens, or set collect.max_context",
                )

    def regrade(self, graded: Graded, token_ids: Sequence[int]) -> Verdict:
        """Grade other token ids (an edited response) for the same question."""
        return together(self.grade)([(graded.question, self.roles.decode(token_ids))])[0]

    def sample(
        self,
        draws: Sequence[Draw],
        sampling: Sampling,
        grading: GradingAhead,
        trim: bool = False,
        weights_read: bool = False,
    ) -> "Sampled":
        """Sample a batch, or a share of one; each response that ended is handed to `grading` at once.

        `weights_read`: the engine has the weights already (`read_weights`); the model's are not looked at.
        """
        requests = [Request(draw.prompt_ids, draw.seed) for draw in draws]
        sampled = Sampled(draws)
        for group in self._streamed(requests, sampling, weights_read):
            stopping.check_own()
            for i, response in group:
                ids, trimmed = list(response.token_ids), False
                if trim and response.stop_reason == "end":
                    ids, trimmed = trim_repeated_tail(ids, self.roles.end_token_id)
                sampled.responses[i], sampled.kept[i] = response, (tuple(ids), trimmed)
                # A response without an end is truncated whatever it says: only finished ones are graded.
                if response.stop_reason == "end":
                    grading.add(i, draws[i].question, self.roles.decode(ids))
        return sampled


class Sampled:
    """The responses of a batch before their verdicts, by the number of the draw; `kept` after trimming."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self.draws = draws
        self.responses: dict[int, Response] = {}
        self.kept: dict[int, tuple[tuple[int, ...], bool]] = {}

    def graded(self, verdicts: Mapping[int, Verdict]) -> list[Graded]:
        """The responses with their verdicts, in the order of the draws."""
        return [
            Graded(
                question=draw.question,
                index=draw.index,
                prompt_ids=draw.prompt_ids,
                token_ids=self.kept[i][0],
                verdict=verdicts[i] if self.responses[i].stop_reason == "end" else Verdict(Outcome.TRUNCATED),
                sampled_tokens=len(self.responses[i].token_ids),
                trimmed=self.kept[i][1],
                weight_version=self.responses[i].weight_version,
            )
            for i, draw in enumerate(self.draws)
        ]
