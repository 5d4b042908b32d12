"""Phase 2: on-policy self-distillation.

Paper, section 3.2:  L_SD = E_x E_y sum_t KL( pi_theta(.|x, y_<t) || pi_T(.|x, y, P_r, y_<t) ),
y ~ pi_theta(.|x) sampled by the student, r its reward, pi_T the frozen Reviser. One optimizer step:
the student answers a batch of questions, the answers are graded, the Reviser's context is built from
each answer and its reward, and the divergence over the answer's tokens is minimised in the student.

The trainer is a `transformers.Trainer`; only what happens in a step is ours. The rollout of a step is
made for all its micro-batches at once, so the result does not depend on how the batch is cut.

What is minimised is an `Objective`: SD-Zero's, or that of a baseline which has the same loop.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerState,
)
from transformers.trainer import TRAINER_STATE_NAME

from sdzero import ranks
from sdzero.disk import writing
from sdzero.errors import UserError
from sdzero.method.adapter_checkpoints import KeepsAdapters
from sdzero.method.adapter_teacher import check_apart
from sdzero.method.alarms import alarms_for
from sdzero.method.checkpoints import COMPLETE_MARKER, DeterministicCheckpoints
from sdzero.method.data_parallel import no_loss
from sdzero.method.distill_config import SelfDistillationConfig
from sdzero.method.graded import Graded, GradedSampler
from sdzero.method.hidden import check_output_head
from sdzero.method.micro_batches import Context, QuestionNumbers, collate_numbers, deal, make_parts
from sdzero.method.objectives import Objective, reviser_divergence
from sdzero.method.parts import TrainsInParts
from sdzero.method.restrict import DivergenceOn, carrying_tokens
from sdzero.method.roles import WeightedSequence
from sdzero.method.srt import weighted_loss_sum
from sdzero.method.step_rollouts import StepRollouts
from sdzero.method.step_tally import add_up_tally, begin_tally, tally_metrics
from sdzero.method.teacher import Teacher
from sdzero.method.training import (
    PlainLog,
    StopWhenSpent,
    StopWithoutProgress,
    evaluations_without_progress,
)
from sdzero.packed_attention import check_packing, packs_rows
from sdzero.questions.question import Question
from sdzero.recipe import AlarmSettings
from sdzero.rollout.engine import seed_of

COUNTED = "counted.json"
"""In a checkpoint: how many rollouts were left out so far, and why; and what is known of solve rates."""


class SelfDistillationTrainer(KeepsAdapters, TrainsInParts):
    """Trains the student on its own responses; by default against a frozen or synchronised Reviser.

    Args:
        model: the student.
        teacher: the Reviser (see `Teacher.load`); frozen here, changed only by a sync. None for an
            objective without a teacher.
        args: `SelfDistillationConfig`.
        questions: what the student answers, each once an epoch.
        sampler: samples with the student's own weights and grades; keeps finished rollouts.
        rehearsal: sequences of the revision loss, for `rehearsal_weight`.
        tuning_score: called every `eval_steps`; returns a score in [0, 1] (and more) of the student.
        report: called with each step's metrics.
        stage: the folder and the ledger's stage under which rollouts are kept and counted.
        objective: what is minimised; by default the divergence from the Reviser, as `args` has it.
        make_schedule: makes the learning-rate schedule, in place of the one that `args` names.
        is_spent: called with the number of finished steps; true ends the training there.
        alarms: when training has collapsed and is stopped (`sdzero.method.alarms`); None: never.
    """

    args: SelfDistillationConfig

    def __init__(
        self,
        model: PreTrainedModel,
        teacher: Teacher | None,
        args: SelfDistillationConfig,
        questions: Sequence[Question],
        sampler: GradedSampler,
        processing_class: PreTrainedTokenizerBase,
        rehearsal: Sequence[WeightedSequence] = (),
        tuning_score: Callable[[int], dict[str, float]] | None = None,
        report: Callable[[dict[str, Any]], None] | None = None,
        checkpoint_every: int = 50,
        early_stop_patience: int | None = None,
        stage: str = "distill",
        objective: Objective | None = None,
        make_schedule: Callable[[Optimizer], LambdaLR] | None = None,
        is_spent: Callable[[int], bool] | None = None,
        alarms: AlarmSettings | None = None,
    ) -> None:
        if not questions:
            raise UserError("phase 2 has no questions", "data.n2", "give data.n2 at least one question")
        if args.rehearsal_weight and not rehearsal:
            raise UserError(
                "rehearsal needs the revision traces of phase 1, and there are none",
                "distill.rehearsal_weight",
                "set it to 0, or run collection",
            )
        if args.sync == "steps" and args.sync_every < 1:
            raise UserError("sync=steps needs sync_every", "distill.sync_every", "set it to 1 or more")
        if objective is None:
            objective = reviser_divergence(args)
        if objective.needs_teacher != (teacher is not None):
            raise ValueError(f"{type(objective).__name__} with teacher {teacher}: the two do not fit")
        if teacher is not None:
            check_apart(model, teacher)
        sampler.take_weights(model, steps=0)
        check_output_head(model)
        self._packed = packs_rows(model)
        if self._packed:
            check_packing(model)
        pad = processing_class.pad_token_id
        self.pad_id = int(processing_class.eos_token_id if pad is None else pad)
        self.stage = stage
        self.objective: Objective = objective
        self.teacher = teacher
        self.questions = list(questions)
        self.rollouts = StepRollouts(sampler, self.questions, args, stage, objective.seeded_as)
        self._last_score: float | None = None
        self.sampler = sampler
        self.rehearsal = list(rehearsal)
        self.tuning_score = tuning_score
        self._patience = early_stop_patience
        self._make_schedule = make_schedule
        self._is_spent = is_spent or (lambda steps: False)
        self._step: dict[str, Any] = {}
        self._finished_metrics: dict[str, Any] = {}
        self.counted = {"overlong": 0, "verifier_errors": 0}
        numbers = QuestionNumbers(len(questions))
        callbacks: list[TrainerCallback] = [
            DeterministicCheckpoints(checkpoint_every),
            PlainLog(report),
            *alarms_for(alarms, model.name_or_path),
        ]
        if is_spent is not None:
            callbacks.append(StopWhenSpent(is_spent))
        if early_stop_patience is not None:
            callbacks.append(StopWithoutProgress(early_stop_patience))
        super().__init__(
            model=model,
            args=args,
            train_dataset=numbers,
            eval_dataset=numbers if tuning_score else None,
            data_collator=collate_numbers,
            processing_class=processing_class,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        # The loss below is normalised by `num_items_in_batch`: the global batch, not a micro-batch.
        self.loss_is_scaled_for_ga = True
        self.check_sharding()
        if teacher is not None:
            teacher.place(self.accelerator)
            teacher.check(self._packed)

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> Any:
        """The schedule that was given, or the one that the arguments name."""
        if self._make_schedule is not None and self.lr_scheduler is None:
            own = optimizer or self.optimizer
            assert own is not None, "the trainer makes the optimizer first"
            self.lr_scheduler = self._make_schedule(own)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- the rollout of a step ----

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor]:
        """Sample and grade the whole global batch, then cut it into micro-batches by length."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        numbers = [number for batch in batches for number in batch["index"].tolist()]
        rollout = self.rollouts.of_step(self.state.global_step, numbers, self.state.max_steps)
        contexts = self._contexts(rollout.graded)
        mean_reward = sum(reward for _, reward in contexts) / max(len(contexts), 1)
        contexts.sort(key=lambda item: item[0].context_tokens)
        rehearsal = self._rehearsal_of_step()
        # Neighbours in length are worked on at the same time: no process waits long for another.
        hands = zip(
            *(deal(rows, len(batches) * ranks.count()) for rows in (contexts, rehearsal)), strict=True
        )
        limit, packed, apart = self.args.micro_batch_tokens, self._packed, ranks.count() > 1
        micro = [
            {"parts": make_parts(own, rehearsed, self.pad_id, limit, packed, apart)}
            for own, rehearsed in ranks.own_share(list(hands))
        ]
        rehearsal_total = sum(sum(s.weights) for s in rehearsal)
        for part in (part for batch in micro for part in batch["parts"]):
            part["rehearsal_total"] = rehearsal_total
            part["mean_reward"] = mean_reward
        carried = [sum(context.loss_weights or (1,) * len(context.targets)) for context, _ in contexts]
        self._step = begin_tally(rollout, contexts, rehearsal, self.objective.measure)
        self._watch = self.sampler.ledger.start()
        if self.args.divergence_on != "all":
            self._step["carrying_share"] = sum(carried) / max(sum(len(c.targets) for c, _ in contexts), 1)
        items = sum(carried) if self.args.normalize == "tokens" else sum(own > 0 for own in carried)
        return micro, torch.tensor(items or 1, device=device)

    def _contexts(self, graded: Sequence[Graded]) -> list[tuple[Context, int]]:
        contexts = []
        for one in graded:
            if not one.verdict.counts:
                self.counted["verifier_errors"] += 1
                continue
            context = self.objective.context(self.sampler.roles, one)
            limit = self.sampler.context_limit(self.args.max_context)
            if limit is not None and context.context_tokens > limit:
                if self.args.overlong == "error":
                    raise UserError(
                        f"the Reviser's context for question {one.question.id} has"
                        f" {context.context_tokens} tokens, more than {limit}",
                        "distill.max_context",
                        "raise it, lower distill.max_new_tokens, or set distill.overlong=drop",
                    )
                self.counted["overlong"] += 1
                continue
            contexts.append((self._restricted(context, one), one.reward))
        return contexts

    def _restricted(self, context: Context, one: Graded) -> Context:
        """The context with weight 1 on the tokens that carry the loss, and 0 on the others."""
        if self.args.divergence_on == "all":
            return context
        on: DivergenceOn = self.args.divergence_on  # type: ignore[assignment]
        roles, markers = self.sampler.roles, self.args.false_start_markers
        decode = partial(roles.decode, special=True)
        flags = carrying_tokens(one.token_ids, decode, roles.end_token_id, on, markers)
        return replace(context, loss_weights=tuple(map(float, flags)))

    def _rehearsal_of_step(self) -> list[WeightedSequence]:
        if not self.args.rehearsal_weight:
            return []
        rng = random.Random(seed_of(self.args.seed, "rehearsal", self.state.global_step))
        return rng.sample(self.rehearsal, min(self.args.rehearsal_batch_size, len(self.rehearsal)))

    # ---- the loss ----

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """This micro-batch's share of the loss over the global batch."""
        if num_items_in_batch is None:
            raise ValueError("the loss is normalised over the global batch, whose size is missing")
        items, student = num_items_in_batch, self.accelerator.unwrap_model(model)
        return self.loss_inside(model, lambda: self._share_of_loss(student, inputs, items))

    def _share_of_loss(
        self, student: PreTrainedModel, inputs: dict[str, Any], items: torch.Tensor | int
    ) -> torch.Tensor:
        loss = torch.zeros((), device=student.device)
        if "input_ids" in inputs:
            loss = loss + self._loss(student, inputs, items)
        if "rehearsal_ids" in inputs:
            rehearsed = weighted_loss_sum(
                student, inputs["rehearsal_ids"], inputs["rehearsal_weights"], inputs["rehearsal_lengths"]
            )
            loss = loss + self.args.rehearsal_weight * rehearsed / inputs["rehearsal_total"]
        if not loss.requires_grad:  # nothing of the batch fell to this micro-batch
            loss = loss + no_loss(student, self.pad_id)
        if self.teacher is not None and "input_ids" not in inputs:
            self.teacher.join(self.objective.teacher_passes, self.pad_id)
        return loss

    def _loss(
        self, student: PreTrainedModel, inputs: dict[str, Any], items: torch.Tensor | int
    ) -> torch.Tensor:
        """The weighted sum over tokens; the weights hold the normaliser, so that nothing is scaled after."""
        lengths_B = inputs["lengths_B"]
        weights_T = inputs.get("target_weights_T")
        if self.args.normalize == "sequences":
            # A sequence without any weight is 0 whatever it is divided by.
            sums_B = inputs.get("weight_sums_B", lengths_B)
            share_T = torch.repeat_interleave(1.0 / torch.where(sums_B > 0, sums_B, 1), lengths_B)
            weights_T = share_T if weights_T is None else share_T * weights_T
        exact: Any = {"dtype": torch.promote_types(student.dtype, torch.float32), "device": student.device}
        if weights_T is None:
            weights_T = torch.ones(int(lengths_B.sum()))
        weights_T = weights_T.to(**exact) * (1.0 / torch.as_tensor(items, **exact))
        losses = self.objective.token_losses(student, self.teacher, inputs, weights_T)
        rewards_T = torch.repeat_interleave(inputs["rewards_B"], lengths_B)
        for reward in (0, 1):
            chosen_T = rewards_T == reward
            self._step[f"sum_{self.objective.measure}_r{reward}"] += float(losses.measure_T[chosen_T].sum())
            self._step[f"tokens_r{reward}"] += int(chosen_T.sum())
        self._step["sum_entropy"] += float(losses.entropy_T.sum())
        return losses.total

    # ---- what a step leaves behind ----

    def finish_step(self) -> dict[str, Any]:
        """Count the step in the ledger, and return its metrics."""
        step, self._step = add_up_tally(self._step), {}
        spent = self._watch.read()
        self.sampler.ledger.record(
            self.stage,
            f"update-{self.state.global_step:06d}",
            trained_tokens=step["target_tokens"],
            teacher_tokens=step["teacher_tokens"],
            seconds=spent.seconds,
            joules=spent.joules,
        )
        return {
            **tally_metrics(step, self.objective.measure),
            **({"carrying_share": step["carrying_share"]} if "carrying_share" in step else {}),
            "update_seconds": spent.seconds,
            "teacher_syncs": self.teacher.sync_count if self.teacher else 0,
            **self.counted,
        }

    def _student(self) -> PreTrainedModel:
        student: PreTrainedModel = self.accelerator.unwrap_model(self.model)
        return student

    def _is_last(self, step: int) -> bool:
        return step >= self.state.max_steps or self._is_spent(step)

    def _is_sync_step(self, step: int) -> bool:
        if self.args.sync in ("never", "plateau") or self._is_last(step):
            return False
        every = self.rollouts.steps_per_epoch if self.args.sync == "epoch" else self.args.sync_every
        return step % every == 0

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """After the optimizer's step, before anything is saved: count, tell the engine, sync."""
        if self._step:
            self.rollouts.wait_until_sampled()  # with the weights before this step
            self.sampler.take_weights(self._student())
            if self.teacher is not None and self.args.teacher_decay is not None:
                self.teacher.follow(self._student(), self.args.teacher_decay)
            elif self.teacher is not None and self._is_sync_step(self.state.global_step):
                self.teacher.sync(self._student())
            self._finished_metrics = self.finish_step()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's own metrics to the optimizer's."""
        if "loss" in logs:
            logs = logs | self._finished_metrics
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the student on the tuning questions (not on a loss)."""
        if self.tuning_score is None:
            raise ValueError("no tuning questions were given")
        self.rollouts.finish()  # the engine and the verifier serve one at a time
        scores = self.tuning_score(self.state.global_step)
        if self.args.sync == "plateau":
            self._sync_on_plateau(scores["avg"])
        metrics = {f"eval_{name}": value for name, value in scores.items()}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _sync_on_plateau(self, score: float) -> None:
        """Sync if the score has not risen since the last evaluation."""
        before, self._last_score = self._last_score, score
        is_last = self._is_last(self.state.global_step)
        if self.teacher is not None and before is not None and score <= before and not is_last:
            self.teacher.sync(self._student())

    # ---- saving and resuming ----

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        self.rollouts.finish()  # what old weights have sampled, no resumed run can sample again
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        with writing(folder):
            if self.teacher is not None:
                self.teacher.save(folder, writes=self.args.should_save)
            if self.args.should_save:
                self._save_beside(folder)
        ranks.barrier()  # all of the checkpoint is there, of every process, when it is marked as whole

    def _save_beside(self, folder: Path) -> None:
        kept: dict[str, Any] = {**self.counted, "last_score": self._last_score}
        if self.rollouts.solve_rates is not None:
            kept["solve_rates"] = self.rollouts.solve_rates.to_json()
        (folder / COUNTED).write_text(json.dumps(kept))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; `resume_from_checkpoint` is the folder of a complete checkpoint of this trainer."""
        if isinstance(resume_from_checkpoint, str):
            folder = Path(resume_from_checkpoint)
            if not (folder / COMPLETE_MARKER).is_file():
                raise UserError("the checkpoint was not finished", str(folder), "resume from an earlier one")
            if self.teacher is not None:
                self.teacher.restore(folder)
            kept = json.loads((folder / COUNTED).read_text())
            self._last_score = kept.pop("last_score")
            if self.rollouts.solve_rates is not None:
                self.rollouts.solve_rates.restore(kept.pop("solve_rates"))
            self.counted = kept
            self.sampler.take_weights(self._student(), int(folder.name.rpartition("-")[2]))
            state = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME))
            # Training had ended here, and was killed before its model was kept.
            if self._patience is not None and evaluations_without_progress(state) >= self._patience:
                self.state = state
                self._load_best_model()
                return None
            # With whole epochs there is nothing left to do; within one, a step more would be made.
            limit = self.args.max_steps
            if self._is_spent(state.global_step) or 0 < limit <= state.global_step:
                self.state = state
                self._load_from_checkpoint(str(folder))
                return None
        with self.rollouts:
            return super().train(resume_from_checkpoint, *args, **kwargs)
