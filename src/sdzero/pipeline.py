"""The order of the stages, and resuming them; nothing else.

collect -> srt (once a round) -> distill -> rft (the control) -> evaluate. Each stage reads the files of
the stage before from the run folder and leaves its own; a stage that is done is not done again.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sdzero.baselines.rft import rft_sequences
from sdzero.errors import UserError
from sdzero.evaluate.score import evaluate
from sdzero.ledger import Ledger
from sdzero.method.collect import collect
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.distill_config import distill_config
from sdzero.method.graded import Draw, Grade, GradedSampler
from sdzero.method.roles import Roles, WeightedSequence
from sdzero.method.srt import srt_rows, train_weighted
from sdzero.method.teacher import Teacher, fingerprint
from sdzero.method.trace import RevisionTrace
from sdzero.method.training import last_complete_checkpoint
from sdzero.models import DTYPES, load_model, load_tokenizer, pick_device, resolve_path, save_model
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import QuestionSets, split_questions
from sdzero.recipe import Recipe
from sdzero.results import NAMES, run_results
from sdzero.rollout.engine import RolloutEngine, Sampling, seed_of
from sdzero.rollout.transformers_engine import TransformersEngine
from sdzero.run_dir import RunDir
from sdzero.step_log import StepLog
from sdzero.verify.pool import VerifierPool

Report = Callable[[str], None]
EngineMaker = Callable[[PreTrainedModel, Roles], RolloutEngine]


@dataclass
class Stages:
    """One run's surroundings, and its stages as methods. Made by `open_run`."""

    recipe: Recipe
    run: RunDir
    ledger: Ledger
    tokenizer: PreTrainedTokenizerBase
    roles: Roles
    sets: QuestionSets
    grade: Grade
    report: Report
    progress: Callable[[str, int, int], None]
    make_engine: EngineMaker

    # ---- what the stages share ----

    def sampler(self, model: PreTrainedModel) -> GradedSampler:
        """A sampler of graded responses with `model`'s weights."""
        engine = self.make_engine(model, self.roles)
        return GradedSampler(engine, self.roles, self.grade, self.run, self.ledger, self.progress)

    def load(self, path: str | Path) -> PreTrainedModel:
        """Load a model with the recipe's dtype and device."""
        return load_model(str(path), self.recipe.model)

    def srt_folder(self, round_: int | None = None) -> str:
        """The SRT model's folder after a round (default: the last), or the user's own checkpoint."""
        if self.recipe.srt.checkpoint:
            return resolve_path(self.recipe.srt.checkpoint)
        return str(self.run.path(f"srt/round-{round_ or self.recipe.collect.rounds}/model"))

    def _needs(self, folder: str | Path, stage: str) -> None:
        if not Path(folder).exists():
            raise UserError(
                f"this stage needs what `{stage}` makes", str(folder), f"run `sdzero {stage}` first"
            )

    def _check_round(self, round_: int) -> None:
        rounds = self.recipe.collect.rounds
        if not 1 <= round_ <= rounds:
            raise UserError(
                f"there is no round {round_}: the recipe has {rounds}", "collect.rounds", "pass --round 1"
            )

    def _train_log(self, stage: str, part: int = 0) -> Callable[[dict[str, Any]], None]:
        step_log = StepLog(self.run, f"{stage}/log.jsonl", part)

        def log(values: dict[str, Any]) -> None:
            step, last = int(values.get("step", 0)), int(values.get("max_steps", 0))
            step_log.append(values)
            if last:
                self.progress(f"{stage}/steps", step, last)

        return log

    # ---- the stages ----

    def collect(self, round_: int) -> None:
        """Phase 1a: traces of one round, from the base model or the SRT model of the round before."""
        self._check_round(round_)
        name = f"collect/round-{round_}"
        if self.recipe.srt.checkpoint or self.run.is_done(name):
            return
        self.report(f"collect, round {round_}: initial responses, verdicts, revisions")
        source = self.recipe.model.path if round_ == 1 else self.srt_folder(round_ - 1)
        if round_ > 1:
            self._needs(source, "srt")
        rounds = self.recipe.collect.rounds
        questions = self.sets.n1[round_ - 1 :: rounds]
        sampler = self.sampler(self.load(source))
        collection = collect(
            questions, sampler, self.recipe.collect, seed=self.recipe.seed, folder=name, round_=round_
        )
        self.run.write_jsonl(f"{name}/traces.jsonl", [trace.to_json() for trace in collection.traces])
        self.run.mark_done(name, collection.statistics)
        shown = collection.statistics
        self.report(
            f"  {shown['kept']} traces kept; revised right:"
            f" {shown['revised_right_after_wrong']['share']:.1%} after wrong,"
            f" {shown['revised_right_after_right']['share']:.1%} after right"
        )

    def traces(self, last_round: int | None = None) -> list[RevisionTrace]:
        """All traces collected up to a round (default: the last)."""
        found: list[RevisionTrace] = []
        for round_ in range(1, (last_round or self.recipe.collect.rounds) + 1):
            name = f"collect/round-{round_}/traces.jsonl"
            self._needs(self.run.path(name), "collect")
            found += [RevisionTrace.from_json(row) for row in self.run.read_jsonl(name)]
        return found

    def srt(self, round_: int) -> None:
        """Phase 1b: from the base model on all traces so far."""
        self._check_round(round_)
        name = f"srt/round-{round_}"
        if self.recipe.srt.checkpoint or self.run.is_done(name):
            return
        stages = srt_rows(self.traces(round_), self.roles, self.recipe.srt)
        self.report(f"srt, round {round_}: {' + '.join(str(len(rows)) for rows in stages)} sequences")
        self._train(name, stages, self.recipe.srt, self.recipe.srt.epochs)

    def _train(
        self, name: str, stages: Sequence[Sequence[WeightedSequence]], settings: Any, epochs: int
    ) -> None:
        """Train the base model on weighted sequences, stage by stage, and keep the model."""
        model = self.load(self.recipe.model.path)
        for number, sequences in enumerate(stages):
            train_weighted(
                model,
                self.tokenizer,
                sequences,
                settings,
                epochs=epochs,
                checkpoint_every=settings.checkpoint_every,
                output_dir=self.run.path(f"{name}/checkpoints-{number}"),
                seed=self.recipe.seed,
                gradient_checkpointing=self.recipe.model.gradient_checkpointing,
                log=self._train_log(name, number),
                ledger=self.ledger,
                stage=name.split("/")[0],
                key=f"{name}/{number}",
            )
        save_model(model, self.tokenizer, self.run.path(f"{name}/model"))
        self.run.mark_done(name, {"sequences": sum(map(len, stages))})
        self._drop_checkpoints(name)

    def _drop_checkpoints(self, name: str) -> None:
        """Optimizer states are of no use once the stage's model is saved."""
        self.run.remove_folders(name, "checkpoints*")

    def distill(self) -> None:
        """Phase 2: student and teacher start at the SRT model."""
        if self.run.is_done("distill"):
            return
        settings, seed = self.recipe.distill, self.recipe.seed
        start = self.srt_folder()
        self._needs(start, "srt")
        model = self.load(start)
        teacher_folder = resolve_path(settings.teacher) if settings.teacher else start
        device = pick_device(self.recipe.model.device)
        teacher = Teacher.load(
            teacher_folder, DTYPES[self.recipe.model.dtype], device, self.recipe.model.attention
        )
        self.report(
            f"distill: {len(self.sets.n2)} questions, {settings.divergence} divergence, full vocabulary,"
            f" temperature 1, teacher {teacher.fingerprint} (sync: {settings.sync})"
        )
        rehearsal = []
        if settings.rehearsal_weight:
            rehearsal = [
                self.roles.revision_sequence(t.prompt_ids, t.initial_ids, t.reward, t.revised_ids)
                for t in self._rehearsal_traces()
            ]
        checkpoints = self.run.path("distill/checkpoints")
        sampler = self.sampler(model)
        sampler.check_fits(
            ((q, self.roles.generator_prompt(q)) for q in self.sets.n2), settings.max_new_tokens
        )
        trainer = SelfDistillationTrainer(
            model,
            teacher,
            distill_config(
                settings,
                checkpoints,
                seed=seed,
                gradient_checkpointing=self.recipe.model.gradient_checkpointing,
                use_cpu=device.type == "cpu",
            ),
            self.sets.n2,
            sampler,
            self.tokenizer,
            rehearsal=rehearsal,
            tuning_score=self._tuning_score(sampler, seed) if settings.evaluate_every else None,
            report=self._train_log("distill"),
            checkpoint_every=settings.checkpoint_every,
            early_stop_patience=settings.early_stop_patience,
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
        save_model(model, self.tokenizer, self.run.path("distill/model"))
        self.run.mark_done(
            "distill", {"teacher": teacher.fingerprint, "syncs": teacher.sync_count, **trainer.counted}
        )
        self._drop_checkpoints("distill")

    def _rehearsal_traces(self) -> list[RevisionTrace]:
        """The traces to rehearse: of the file that the recipe names, or the run's own."""
        named = self.recipe.distill.rehearsal_traces
        if named is None:
            return self.traces()
        file = Path(named)
        if not file.is_file():
            raise UserError(
                "there is no file of traces here",
                named,
                "set distill.rehearsal_traces to a run's traces.jsonl, or distill.rehearsal_weight=0",
            )
        rows = RunDir.unlocked(file.parent).read_jsonl(file.name)
        return [RevisionTrace.from_json(row) for row in rows]

    def _tuning_score(self, sampler: GradedSampler, seed: int) -> Callable[[int], dict[str, float]]:
        def score(step: int) -> dict[str, float]:
            found = evaluate(
                self.sets.tuning,
                sampler,
                self.recipe.evaluate,
                seed=seed,
                folder=f"distill/tuning/step-{step:06d}",
                stage="tuning",
                revise=False,
            )["evaluation"]
            self.report(f"  step {step}: tuning avg {found['avg']:.3f}, {found['mean_tokens']:.1f} tokens")
            return {"avg": found["avg"], "mean_tokens": found["mean_tokens"]}

        return score

    def rft(self) -> None:
        """The control: as many responses as SD-Zero sampled, verified-correct ones trained on."""
        settings = self.recipe.rft
        if not settings.enabled or self.run.is_done("rft"):
            return
        spent = self.ledger.by_stage()
        budget = sum(spent.get(stage, {}).get("responses", 0) for stage in ("collect", "distill"))
        questions = [*self.sets.n1, *self.sets.n2]
        self.report(f"rft: {budget} responses on {len(questions)} questions")
        sampler = self.sampler(self.load(self.recipe.model.path))
        rounds = -(-budget // len(questions))
        draws = [
            Draw(
                question,
                tuple(self.roles.generator_prompt(question)),
                seed_of(self.recipe.seed, "rft", question.id, index),
                index,
            )
            for index in range(rounds)
            for question in questions
        ][:budget]
        sampled = self.recipe.collect
        graded = sampler.batches(
            draws,
            Sampling(sampled.temperature, sampled.max_new_tokens, sampled.top_p),
            folder="rft/responses",
            stage="rft",
            batch_size=sampled.batch_size,
        )
        sequences = rft_sequences([(g.prompt_ids, g.token_ids, g.verdict) for g in graded], self.roles)
        self._train("rft", [sequences], settings, settings.epochs)

    def evaluate(self, name: str, model_path: str | Path) -> dict[str, Any]:
        """Score one model on the test questions; keeps `evaluate/NAME.json`."""
        stored = f"evaluate/{name}.json"
        if self.run.path(stored).exists():
            return dict(self.run.read_json(stored))
        on = self.recipe.evaluate.on
        questions = getattr(self.sets, on)
        self.report(f"evaluate {name}: {len(questions)} {on} questions, k={self.recipe.evaluate.k}")
        found = evaluate(
            questions,
            self.sampler(self.load(model_path)),
            self.recipe.evaluate,
            seed=self.recipe.seed,
            folder=f"evaluate/{name}",
        )
        self.run.write_json(stored, found)
        return found

    def evaluate_folder(self, name: str, model_path: str) -> dict[str, Any]:
        """Score a model folder of the user's under a name of its own."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or name in NAMES:
            raise UserError(
                f"scores cannot be stored under the name `{name}`",
                "--name",
                f"use letters, digits, `.`, `_` and `-`, and none of {', '.join(NAMES)}",
            )
        own, known = fingerprint(self.load(model_path)), f"evaluate/{name}/model.json"
        if not self.run.path(known).exists():
            self.run.write_json(known, {"model": model_path, "fingerprint": own})
        elif self.run.read_json(known)["fingerprint"] != own:
            raise UserError(
                f"the name `{name}` holds scores of another model", str(self.run.path(known)), "pass --name"
            )
        return self.evaluate(name, model_path)

    def models(self) -> dict[str, str]:
        """The models that evaluation compares, by name, as far as they exist."""
        found = {"base": self.recipe.model.path, "srt": self.srt_folder()}
        for name, folder in (("sdzero", "distill/model"), ("rft", "rft/model")):
            if self.run.path(folder).exists():
                found[name] = str(self.run.path(folder))
        return found

    def evaluate_all(self) -> dict[str, Any]:
        """Score every model of the run and write `results.json`."""
        self._needs(self.srt_folder(), "srt")
        for name, path in self.models().items():
            self.evaluate(name, path)
        return self.write_results()

    def write_results(self) -> dict[str, Any]:
        """Write `results.json` from what was evaluated and counted so far."""
        found = {
            name: self.run.read_json(f"evaluate/{name}.json")
            for name in ("base", "srt", "sdzero", "rft")
            if self.run.path(f"evaluate/{name}.json").exists()
        }
        results = run_results(self.recipe, self.run, self.ledger, found)
        self.run.write_json("results.json", results)
        return results

    def run_all(self) -> dict[str, Any]:
        """All stages in order."""
        for round_ in range(1, self.recipe.collect.rounds + 1):
            self.collect(round_)
            self.srt(round_)
        self.distill()
        self.rft()
        return self.evaluate_all()


def default_engine(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> EngineMaker:
    """Engines that sample with the model in this process."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def make(model: PreTrainedModel, roles: Roles) -> RolloutEngine:
        return TransformersEngine(
            model,
            end_token_ids=[roles.end_token_id],
            pad_token_id=int(pad),
            batch_size=recipe.rollout.batch_size,
        )

    return make


@contextmanager
def open_run(
    recipe: Recipe,
    folder: Path,
    report: Report,
    progress: Callable[[str, int, int], None],
    wrap_engine: Callable[[EngineMaker], EngineMaker] | None = None,
    shared_questions: bool = False,
) -> Iterator[Stages]:
    """Open or resume a run: its folder, its questions, its verifier (after the canaries), its roles.

    `wrap_engine` and `shared_questions` (every set holds all questions) are for dry runs.
    """
    torch.set_flush_denormal(True)  # tiny numbers slow a CPU down by an order of magnitude
    run = RunDir.open(folder, recipe)
    try:
        tokenizer = load_tokenizer(recipe.model.path)
        roles = Roles(tokenizer, recipe.phrases, recipe.chat)
        questions = load_questions(recipe.data)
        if shared_questions:
            sets = QuestionSets(n1=questions, n2=questions, tuning=[], test=questions)
        else:
            sets = split_questions(questions, recipe.data)
        run.write_json("questions.json", {name: [q.id for q in own] for name, own in vars(sets).items()})
        make_engine = default_engine(recipe, tokenizer)
        verifier = recipe.verifier
        with VerifierPool(verifier.name, verifier.workers, verifier.timeout_seconds) as pool:
            pool.check_canaries()
            yield Stages(
                recipe=recipe,
                run=run,
                ledger=Ledger(run.path("ledger.jsonl")),
                tokenizer=tokenizer,
                roles=roles,
                sets=sets,
                grade=pool.grade,
                report=report,
                progress=progress,
                make_engine=wrap_engine(make_engine) if wrap_engine else make_engine,
            )
    finally:
        torch.set_flush_denormal(False)
        run.close()
