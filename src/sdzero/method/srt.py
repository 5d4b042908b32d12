"""Phase 1b, Self-Revision Training: the two losses on kept traces.

Paper, section 3.1:  L_SRT = L_revision + L_generation, with
L_revision   = -log pi(y_revised | x, y_init, P_r)
L_generation = -log pi([y_init, P_r, y_revised] | x)

Both are weighted sums of -log p over the tokens of one sequence, so one trainer serves: every token
comes with its weight, and the loss is

    sum over the global batch of  weight * -log p(token)  /  sum over the global batch of  weight

which does not change with the number of devices, the micro-batch size or the accumulation steps. The
same trainer fine-tunes on plain responses (RFT).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from sdzero.errors import UserError
from sdzero.ledger import Ledger
from sdzero.method.adapter_checkpoints import KeepsAdapters
from sdzero.method.alarms import alarms_for
from sdzero.method.checkpoints import DeterministicCheckpoints, last_complete_checkpoint
from sdzero.method.chunked_nll import weighted_nll_sum
from sdzero.method.data_parallel import no_loss
from sdzero.method.hidden import check_output_head, hidden_states, logits_of, output_head
from sdzero.method.parts import TrainsInParts
from sdzero.method.roles import Roles, WeightedSequence
from sdzero.method.trace import RevisionTrace
from sdzero.method.training import (
    PlainLog,
    training_arguments,
)
from sdzero.method.weighted_batches import LengthSortedSampler, WeightedCollator
from sdzero.packed_attention import check_packing, packs_rows
from sdzero.recipe import AlarmSettings, SrtSettings
from sdzero.recipe_base import OptimizerSettings

LOGITS_AT_A_TIME = 1 << 27
"""Logits (tokens times vocabulary) that are held at once, in float32; more are made chunk by chunk."""


def srt_rows(
    traces: Sequence[RevisionTrace], roles: Roles, settings: SrtSettings
) -> list[list[WeightedSequence]]:
    """The training sequences of each stage, in the order of the stages.

    `joint` (the paper's) is one stage with both losses; with `generation_on: wrong`, traces whose
    initial response was right carry the revision loss only. `two_stage` (the authors' code) is the
    generation loss on traces whose initial response was wrong, then the revision loss on all.
    Raises UserError for a stage without sequences.
    """
    if settings.schedule_of_losses == "two_stage":
        stages = [
            [roles.generation_sequence(*_parts(trace)) for trace in traces if trace.reward == 0],
            [roles.revision_sequence(*_parts(trace)) for trace in traces],
        ]
    else:
        only_wrong = settings.generation_on == "wrong"
        stages = [
            [
                roles.joint_sequence(
                    *_parts(trace),
                    generation_weight=0.0 if only_wrong and trace.reward else settings.generation_weight,
                    revision_weight=settings.revision_weight,
                )
                for trace in traces
            ]
        ]
    for number, stage in enumerate(stages, start=1):
        if not stage:
            raise UserError(
                f"stage {number} of self-revision training has no traces to train on",
                where="srt.schedule_of_losses",
                todo="collect more traces, or set srt.schedule_of_losses=joint",
            )
    return stages


def _parts(trace: RevisionTrace) -> tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...]]:
    return trace.prompt_ids, trace.initial_ids, trace.reward, trace.revised_ids


def weighted_loss_sum(
    model: PreTrainedModel, ids_BT: Tensor, weights_BT: Tensor, lengths: Sequence[int] | None = None
) -> Tensor:
    """Sum of weight * -log p(token) over a batch padded on the right; a scalar that carries gradient.

    With `lengths` the batch is one row of packed sequences, whose first tokens must have weight 0.

    `weights_BT[b, t]` is the weight of the token `ids_BT[b, t]` as a target; the first column has no
    prediction and is left out. Logits are made for weighted tokens only, and taken to float32 (float64
    stays) for the softmax.
    """
    weights_BP = weights_BT[:, 1:]
    row_N, column_N = weights_BP.nonzero(as_tuple=True)
    targets_N = ids_BT[row_N, column_N + 1]
    weights_N = weights_BP[row_N, column_N]
    hidden_ND = hidden_states(model, ids_BT, row_N * ids_BT.shape[1] + column_N, lengths)
    head = output_head(model)

    def loss_sum(hidden_CD: Tensor, targets_C: Tensor, weights_C: Tensor) -> Tensor:
        logits_CV = logits_of(head, hidden_CD)
        if logits_CV.dtype != torch.float64:
            logits_CV = logits_CV.float()
        nll_C = functional.cross_entropy(logits_CV, targets_C, reduction="none")
        return (nll_C * weights_C.to(nll_C.dtype)).sum()

    size = max(1, LOGITS_AT_A_TIME // head.out_features)
    if len(targets_N) <= size:
        return loss_sum(hidden_ND, targets_N, weights_N)
    return weighted_nll_sum(hidden_ND, head.weight, head.bias, targets_N, weights_N, size)


@dataclass
class SRTConfig(SFTConfig):
    """`SFTConfig` with the defaults that weighted token ids need: nothing is cut or re-made.

    Rows are packed if the model's attention takes that (`sdzero.packed_attention`), not by TRL's `packing`.
    """

    micro_batch_tokens: int | None = field(default=None, metadata={"help": "most tokens in a forward pass"})
    max_length: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    remove_unused_columns: bool = False
    dataset_kwargs: dict[str, Any] | str | None = field(
        default_factory=lambda: {"skip_prepare_dataset": True}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        changed = [name for name in ("max_length", "packing", "padding_free") if getattr(self, name)]
        if changed:
            raise UserError(
                f"self-revision training trains on whole sequences, one a row, so `{changed[0]}` cannot be"
                " set",
                where="SRTConfig",
                todo="leave it at its default; drop long sequences beforehand if they do not fit",
            )


class SRTTrainer(KeepsAdapters, TrainsInParts, SFTTrainer):
    """TRL's SFTTrainer with a weight on each target token; rows hold `input_ids` and `token_weights`.

    The loss, the order of the rows (by length, from seed and epoch alone, so that a resumed run sees
    the same batches) and the counting are ours, the rest is TRL's. Raises UserError for a model whose
    logits are not its output head's (see `check_output_head`).
    """

    # The loss is divided by the weight of the whole global batch, accumulation included.
    loss_is_scaled_for_ga: bool = True  # type: ignore[assignment]

    def __init__(
        self,
        model: PreTrainedModel,
        args: SRTConfig,
        train_dataset: Dataset,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        check_output_head(model)
        if packs_rows(model):
            check_packing(model)
        pad = processing_class.pad_token_id
        self._pad_id = int(processing_class.eos_token_id if pad is None else pad)
        self.trained_tokens = 0
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class,
            data_collator=WeightedCollator(
                self._pad_id,
                args.micro_batch_tokens,
                packs_rows(model),
            ),
            callbacks=callbacks,
            **kwargs,
        )
        self.check_sharding()

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler[int]:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        batch_size = (
            self.args.per_device_train_batch_size
            * self.args.gradient_accumulation_steps
            * self.accelerator.num_processes
        )
        return LengthSortedSampler([len(ids) for ids in dataset["input_ids"]], batch_size, self.args.seed)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> Tensor | None:
        """Sum of the weights over the global batch, in place of TRL's count of tokens."""
        if not batch_samples:
            return None
        weights = [part["weights"] for batch in batch_samples for part in batch["parts"]]
        if self.accelerator.num_processes > 1:
            total = torch.tensor(sum(batch["weight"] for batch in batch_samples), device=device)
        else:
            total = torch.stack([part.sum() for part in weights]).sum().to(device)
        self.trained_tokens += sum(batch["weighted_tokens"] for batch in batch_samples)
        if total == 0:
            raise UserError(
                "a whole batch of training sequences has no token with a weight",
                todo="check srt.generation_weight and srt.revision_weight: one of them must be above 0",
            )
        return total

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """This micro-batch's share of the loss over the global batch."""
        if return_outputs:
            raise NotImplementedError("logits are never built as a whole")
        student = self.accelerator.unwrap_model(model)
        if num_items_in_batch is None:
            num_items_in_batch = inputs["weights"].sum()
        items = num_items_in_batch

        def share_of_loss() -> Tensor:
            if "ids" not in inputs:  # nothing of the batch fell to this process
                return no_loss(student, self._pad_id)
            own = weighted_loss_sum(student, inputs["ids"], inputs["weights"], inputs["lengths"])
            return own / items

        return self.loss_inside(model, share_of_loss)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: checkpoints are working files of a run, not a publication."""


class _CountInLedger(TrainerCallback):
    """Counts trained tokens, seconds and joules since the checkpoint before, at each one, under its step.

    A resumed run saves at the same steps, so it writes the same keys. Comes before the callback that
    marks a checkpoint as whole: what is killed in between is trained and counted again.
    """

    def __init__(self, ledger: Ledger, stage: str, key: str) -> None:
        self._ledger, self._stage, self._key = ledger, stage, key
        self.trainer: SRTTrainer | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self._counted_tokens, self._watch = 0, self._ledger.start()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record what is kept now; work after the last checkpoint of a killed process is not counted."""
        assert self.trainer is not None
        spent = self._watch.read()
        self._ledger.record(
            self._stage,
            f"{self._key}/to-step-{state.global_step:06d}",
            trained_tokens=self.trainer.trained_tokens - self._counted_tokens,
            seconds=spent.seconds,
            joules=spent.joules,
        )
        self._counted_tokens, self._watch = self.trainer.trained_tokens, self._ledger.start()


def train_weighted(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sequences: Sequence[WeightedSequence],
    settings: OptimizerSettings,
    *,
    epochs: int,
    checkpoint_every: int,
    output_dir: Path,
    seed: int,
    gradient_checkpointing: bool = False,
    log: Callable[[dict[str, Any]], None] | None = None,
    resume: bool = True,
    ledger: Ledger | None = None,
    stage: str = "srt",
    key: str = "srt",
    alarms: AlarmSettings | None = None,
) -> int:
    """Train `model` in place on weighted sequences; returns the number of optimizer steps.

    A checkpoint is kept in `output_dir` every `checkpoint_every` steps and after the last. With `resume`
    training goes on from the newest whole one and ends in the same weights as without the interruption
    (on a CPU with a fixed number of threads: bit for bit). `log` gets each step's numbers. What was
    trained is counted in the ledger under (`stage`, `key`). `alarms` stop a training that collapses.

    Raises UserError for no sequences, for one longer than the model's context, and for a loss that
    is not finite.
    """
    _check_sequences(model, sequences)
    use_cpu = model.device.type == "cpu"
    arguments = training_arguments(
        settings,
        output_dir,
        epochs=epochs,
        checkpoint_every=checkpoint_every,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
        use_cpu=use_cpu,
    )
    callbacks: list[TrainerCallback] = [PlainLog(log)]
    counter = _CountInLedger(ledger, stage, key) if ledger is not None else None
    if counter is not None:
        callbacks.append(counter)
    callbacks += [DeterministicCheckpoints(checkpoint_every), *alarms_for(alarms, model.name_or_path)]
    rows = {
        "input_ids": [list(sequence.token_ids) for sequence in sequences],
        "token_weights": [list(sequence.weights) for sequence in sequences],
    }
    was_training, own_forward = model.training, model.__dict__.get("forward")
    try:
        config = SRTConfig(**arguments, micro_batch_tokens=settings.micro_batch_tokens)
        trainer = SRTTrainer(model, config, Dataset.from_dict(rows), tokenizer, callbacks)
        trainer.remove_callback(PrinterCallback)
        if counter is not None:
            counter.trainer = trainer
        trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir) if resume else None)
    finally:
        # TRL's trainer leaves its own forward on the model object, bound to it: copies of the model made
        # later would still run this one.
        model.__dict__.pop("forward", None)
        if own_forward is not None:
            model.__dict__["forward"] = own_forward
        if gradient_checkpointing:
            model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]
        model.train(was_training)
    return int(trainer.state.global_step)


def _check_sequences(model: PreTrainedModel, sequences: Sequence[WeightedSequence]) -> None:
    if not sequences:
        raise UserError("there are no sequences to train on", todo="collect more responses first")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(sequence.token_ids) for sequence in sequences)
    if context is not None and longest > context:
        raise UserError(
            f"a training sequence has {longest} tokens, the model's context is {context}",
            todo="lower collect.max_new_tokens, set collect.max_context, or leave out long demonstrations",
        )
