"""The order of the stages, and resuming them; nothing else.

collect -> srt (once a round) -> distill -> RFT, as a control -> evaluate; before them, in label-free mode,
the labels. Each stage reads the files of the stage before from the run folder and leaves its own; a stage
that is done is not done again.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sdzero import offline, ranks, stopping
from sdzero.allocator import keep_freed_memory
from sdzero.baselines.registry import baseline_named
from sdzero.devices import device_count, gpus_used
from sdzero.energy import measuring
from sdzero.engines import EngineMaker, open_engines
from sdzero.errors import UserError
from sdzero.evaluate.harness import score_with_harness
from sdzero.evaluate.score import evaluate
from sdzero.evaluate.suite_run import load_suite, score_suite
from sdzero.export import card_of
from sdzero.ledger import Ledger
from sdzero.lora_start import student_and_teacher
from sdzero.method.checkpoints import last_complete_checkpoint
from sdzero.method.collect import collect
from sdzero.method.distill import SelfDistillationTrainer
from sdzero.method.distill_config import distill_config
from sdzero.method.graded import GradedSampler
from sdzero.method.roles import Roles
from sdzero.method.srt import srt_rows
from sdzero.method.teacher import fingerprint
from sdzero.method.thinking import thinking_of, thinking_warning
from sdzero.method.trace import RevisionTrace
from sdzero.models import load_tokenizer, pick_device, resolve_path
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.questions.splits import QuestionSets, split_questions
from sdzero.recipe import Recipe, SrtSettings
from sdzero.recipe_base import OptimizerSettings
from sdzero.recipe_distill import DistillSettings
from sdzero.results import NAMES, check_score_name, run_results
from sdzero.run_context import Budget, Report, RunContext
from sdzero.run_dir import RunDir
from sdzero.run_labels import hide_references, label_training_questions, note_true_rewards
from sdzero.run_provenance import complete_record
from sdzero.teacher_start import check_started, load_teacher
from sdzero.tracking import open_trackers
from sdzero.verify.code import check_languages
from sdzero.verify.pool import pool_of


@dataclass
class Stages(RunContext):
    """The stages of one run as methods. Made by `open_run`.

    A stage may be done again under another name with other settings, beside the first: that is how
    searches and studies share what does not change.
    """

    def srt_folder(self, round_: int | None = None, name: str = "srt") -> str:
        """The SRT model's folder after a round (default: the last), or the user's own checkpoint."""
        if self.recipe.srt.checkpoint:
            return resolve_path(self.recipe.srt.checkpoint)
        return str(self.run.path(f"{name}/round-{round_ or self.recipe.collect.rounds}/model"))

    def _check_round(self, round_: int) -> None:
        rounds = self.recipe.collect.rounds
        if not 1 <= round_ <= rounds:
            raise UserError(
                f"there is no round {round_}: the recipe has {rounds}", "collect.rounds", "pass --round 1"
            )

    # ---- the stages ----

    def collect(
        self,
        round_: int,
        name: str = "collect",
        only_verified: bool = True,
        srt_name: str = "srt",
    ) -> None:
        """Phase 1a: traces of one round, from the base model or the SRT model of the round before."""
        self._check_round(round_)
        folder = f"{name}/round-{round_}"
        if self.recipe.srt.checkpoint or self.run.is_done(folder):
            return
        label_training_questions(self)
        self.report(f"{name}, round {round_}: initial responses, verdicts, revisions")
        source = self.recipe.model.path if round_ == 1 else self.srt_folder(round_ - 1, srt_name)
        if round_ > 1:
            self.needs(source, "srt")
        rounds = self.recipe.collect.rounds
        collection = collect(
            self.sets.n1[round_ - 1 :: rounds],
            self.sampler(self.load(source)),
            self.recipe.collect,
            seed=self.recipe.seed,
            folder=folder,
            round_=round_,
            stage=name,
            only_verified=only_verified,
        )
        self.run.write_jsonl(f"{folder}/traces.jsonl", [trace.to_json() for trace in collection.traces])
        note_true_rewards(self, folder)
        self.run.mark_done(folder, collection.statistics)
        shown = collection.statistics
        self.report(
            f"  {shown['kept']} traces kept; revised right:"
            f" {shown['revised_right_after_wrong']['share']:.1%} after wrong,"
            f" {shown['revised_right_after_right']['share']:.1%} after right"
        )

    def traces(self, last_round: int | None = None, name: str = "collect") -> list[RevisionTrace]:
        """All traces collected up to a round (default: the last)."""
        found: list[RevisionTrace] = []
        for round_ in range(1, (last_round or self.recipe.collect.rounds) + 1):
            file = f"{name}/round-{round_}/traces.jsonl"
            self.needs(self.run.path(file), "collect")
            found += [RevisionTrace.from_json(row) for row in self.run.read_jsonl(file)]
        return found

    def srt(
        self,
        round_: int,
        name: str = "srt",
        settings: SrtSettings | None = None,
        traces_of: str = "collect",
    ) -> None:
        """Phase 1b: from the base model on all traces so far."""
        self._check_round(round_)
        folder, settings = f"{name}/round-{round_}", settings or self.recipe.srt
        if settings.checkpoint:
            return
        self.claim(folder, settings)
        if self.run.is_done(folder):
            return
        stages = srt_rows(self.traces(round_, traces_of), self.roles, settings)
        self.report(f"{name}, round {round_}: {' + '.join(str(len(rows)) for rows in stages)} sequences")
        self.train_on(folder, stages, settings)

    def phase_1(
        self,
        collect: str = "collect",
        srt: str = "srt",
        settings: SrtSettings | None = None,
        only_verified: bool = True,
    ) -> None:
        """Collection and SRT, all rounds, under these names."""
        for round_ in range(1, self.recipe.collect.rounds + 1):
            self.collect(round_, collect, only_verified, srt)
            self.srt(round_, srt, settings, collect)

    def distill(
        self,
        name: str = "distill",
        settings: DistillSettings | None = None,
        start: str | None = None,
        traces_of: str = "collect",
        teacher: str | None = None,
    ) -> None:
        """Phase 2: student and teacher start at the SRT model (or at the model in `start`); `teacher` is a
        model folder to be the Reviser in its place, as `distill.teacher` is."""
        settings, seed = settings or self.recipe.distill, self.recipe.seed
        self.claim(name, settings)
        if self.run.is_done(name):
            return
        label_training_questions(self)
        questions = self.sets.n2
        if start is None:
            start = self.srt_folder()
            self.needs(start, "srt")
        start = resolve_path(start)
        named = teacher or settings.teacher
        teacher_folder = resolve_path(named) if named else start
        device = pick_device(self.recipe.model.device)
        if self.recipe.lora is None:
            model = self.load(start)
            reviser = load_teacher(self, teacher_folder, settings.teacher_placement)
        else:
            model, reviser = student_and_teacher(self, start, teacher_folder, settings.teacher_placement)
        self.report(
            f"{name}: {len(questions)} questions, {settings.divergence} divergence (on:"
            f" {settings.divergence_on}; by: {settings.divergence_backend}), full vocabulary, temperature 1,"
            f" teacher {reviser.fingerprint} (sync: {settings.sync})"
        )
        rehearsal = []
        if settings.rehearsal_weight:
            rehearsal = [
                self.roles.revision_sequence(t.prompt_ids, t.initial_ids, t.reward, t.revised_ids)
                for t in self._rehearsal_traces(settings, traces_of)
            ]
        checkpoints = self.run.path(f"{name}/checkpoints")
        sampler = self.sampler(model)
        sampler.check_fits(((q, self.roles.generator_prompt(q)) for q in questions), settings.max_new_tokens)
        trainer = SelfDistillationTrainer(
            model,
            reviser,
            distill_config(
                settings,
                checkpoints,
                seed=seed,
                gradient_checkpointing=self.recipe.model.gradient_checkpointing,
                use_cpu=device.type == "cpu",
            ),
            questions,
            sampler,
            self.tokenizer,
            rehearsal=rehearsal,
            tuning_score=self._tuning_score(sampler, name) if settings.evaluate_every else None,
            report=self.train_log(name),
            checkpoint_every=settings.checkpoint_every,
            early_stop_patience=settings.early_stop_patience,
            stage=name,
            alarms=self.alarms,
        )
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(checkpoints))
        note_true_rewards(self, name)
        self.keep(
            name,
            model,
            {"teacher": reviser.fingerprint, "syncs": reviser.sync_count, **trainer.counted},
            parent=start,
        )

    def _rehearsal_traces(self, settings: DistillSettings, traces_of: str) -> list[RevisionTrace]:
        """The traces to rehearse: of the file that the settings name, or the run's own."""
        named = settings.rehearsal_traces
        if named is None:
            return self.traces(name=traces_of)
        file = Path(named)
        if not file.is_file():
            raise UserError(
                "there is no file of traces here",
                named,
                "set distill.rehearsal_traces to a run's traces.jsonl, or distill.rehearsal_weight=0",
            )
        rows = RunDir.unlocked(file.parent).read_jsonl(file.name)
        return [RevisionTrace.from_json(row) for row in rows]

    def _tuning_score(self, sampler: GradedSampler, name: str) -> Callable[[int], dict[str, float]]:
        def score(step: int) -> dict[str, float]:
            found = evaluate(
                self.sets.tuning,
                sampler,
                self.recipe.evaluate,
                seed=self.recipe.seed,
                folder=f"{name}/tuning/step-{step:06d}",
                stage="tuning",
                revise=False,
            )["evaluation"]
            self.report(f"  step {step}: tuning avg {found['avg']:.3f}, {found['mean_tokens']:.1f} tokens")
            return {"avg": found["avg"], "mean_tokens": found["mean_tokens"]}

        return score

    def baseline(
        self,
        method: str,
        name: str | None = None,
        settings: OptimizerSettings | None = None,
        budget: Budget | None = None,
    ) -> None:
        """Train one of the baselines within SD-Zero's budget. Its section must be in the recipe."""
        name, baseline = name or method, baseline_named(method)
        settings = settings or baseline.settings(self.recipe)
        self.claim(name, settings)
        if self.run.is_done(name):
            return
        label_training_questions(self)
        baseline.train(self, name, settings, budget or self.budget())

    def evaluate(
        self,
        name: str,
        model_path: str | Path,
        revise: bool = True,
        questions: Sequence[Question] | None = None,
    ) -> dict[str, Any]:
        """Score one model on the test questions (or those of `evaluate.on`); keeps `evaluate/NAME.json`."""
        stored = f"evaluate/{name}.json"
        if self.run.path(stored).exists():
            return dict(self.run.read_json(stored))
        on = self.recipe.evaluate.on
        questions = getattr(self.sets, on) if questions is None else questions
        self.report(f"evaluate {name}: {len(questions)} {on} questions, k={self.recipe.evaluate.k}")
        found = evaluate(
            questions,
            self.sampler(self.load(model_path)),
            self.recipe.evaluate,
            seed=self.recipe.seed,
            folder=f"evaluate/{name}",
            revise=revise,
        )
        self.run.write_json(stored, found)
        return found

    def evaluate_folder(self, name: str, model_path: str) -> dict[str, Any]:
        """Score a model folder of the user's under a name of its own."""
        check_score_name(name)
        own, known = fingerprint(self.load(model_path)), f"evaluate/{name}/model.json"
        if not self.run.path(known).exists():
            self.run.write_json(known, {"model": model_path, "fingerprint": own})
        elif self.run.read_json(known)["fingerprint"] != own:
            raise UserError(
                f"the name `{name}` holds scores of another model", str(self.run.path(known)), "pass --name"
            )
        return self.evaluate(name, model_path)

    def suite(
        self, suite: str, model: str | None = None, name: str = "model", data: Path | None = None
    ) -> dict[str, Any]:
        """Score the run's models, as far as they exist, or one folder, on named benchmarks."""
        return score_suite(self, suite, self._to_score(model, name), data)

    def harness(self, tasks: Path, model: str | None = None, name: str = "model") -> dict[str, Any]:
        """The same on tasks of lm-evaluation-harness, a file or a folder of them."""
        return score_with_harness(self, tasks, self._to_score(model, name))

    def _to_score(self, model: str | None, name: str) -> dict[str, str]:
        if model is not None:
            check_score_name(name)
            return {name: model}
        return {key: path for key, path in self.models().items() if key == "base" or Path(path).exists()}

    def models(self) -> dict[str, str]:
        """The models that evaluation compares, by name, as far as they exist."""
        found = {"base": self.recipe.model.path, "srt": self.srt_folder()}
        for name in NAMES:
            folder = self.run.path("distill/model" if name == "sdzero" else f"{name}/model")
            if folder.exists():
                found[name] = str(folder)
        return found

    def evaluate_all(self) -> dict[str, Any]:
        """Score every model of the run and write `results.json`."""
        self.needs(self.srt_folder(), "srt")
        for name, path in self.models().items():
            self.evaluate(name, path)
        return self.write_results()

    def write_results(self) -> dict[str, Any]:
        """Write `results.json` from what was evaluated and counted so far."""
        found = {
            name: self.run.read_json(f"evaluate/{name}.json")
            for name in NAMES
            if self.run.path(f"evaluate/{name}.json").exists()
        }
        results = run_results(self.recipe, self.run, self.ledger, found)
        self.run.write_json("results.json", results)
        return results

    def run_all(self) -> dict[str, Any]:
        """All stages in order; at the end the recipe's suite, if it names one."""
        suite = self.recipe.suite.name
        if suite is not None:  # what is missing of it is told before anything is trained
            load_suite(self, suite, None)
        check_started(self.recipe)
        self.phase_1()
        self.distill()
        if self.recipe.rft.enabled:
            self.baseline("rft")
        results = self.evaluate_all()
        card = card_of(self.run, self.recipe, "sdzero", self.run.path("distill/model"))
        self.run.write_text("distill/model/README.md", card)
        complete_record(self, "distill")
        if suite is not None:
            self.suite(suite)
        return results


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
    if pick_device(recipe.model.device).type == "cpu":
        keep_freed_memory()
    torch.set_flush_denormal(True)  # tiny numbers slow a CPU down by an order of magnitude
    run, kept = RunDir.open(folder, recipe), ExitStack()
    try:
        kept.enter_context(offline.kept_in(recipe))
        tokenizer = load_tokenizer(recipe.model.path)
        roles = Roles(tokenizer, recipe.phrases, recipe.chat)
        if warning := thinking_warning(thinking_of(tokenizer, recipe.chat), recipe.distill):
            report(f"warning: {warning}")
        questions = load_questions(recipe.data, empty_answers=recipe.labels.is_majority)
        if shared_questions:
            sets = QuestionSets(n1=questions, n2=questions, tuning=[], test=questions)
        else:
            sets = split_questions(questions, recipe.data)
        run.write_json("questions.json", {name: [q.id for q in own] for name, own in vars(sets).items()})
        if recipe.verifier.name == "code":
            check_languages(questions, recipe.verifier.sandbox)
        with (
            stopping.listening(),
            open_engines(recipe, tokenizer, run.path("rollout"), report) as make_engine,
            pool_of(recipe.verifier, run.path("cache/verdicts.sqlite")) as pool,
            measuring(gpus_used(recipe)) as meter,
            open_trackers(recipe, run.root) as trackers,
        ):
            pool.check_canaries()
            stages = Stages(
                recipe=recipe,
                run=run,
                ledger=Ledger(run.path("ledger.jsonl"), meter, device_count(recipe, ranks.count())),
                tokenizer=tokenizer,
                roles=roles,
                sets=sets,
                grade=pool.grade,
                report=report,
                progress=progress,
                make_engine=wrap_engine(make_engine) if wrap_engine else make_engine,
                trackers=trackers,
            )
            yield hide_references(stages) if recipe.labels.is_majority else stages
    finally:
        kept.close()
        torch.set_flush_denormal(False)
        run.close()
