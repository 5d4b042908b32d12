"""What one-step-ahead rollouts need: a batch under way beside the training, and the questions of a step
that the data loader has not come to.

Several processes share such a batch out like any other: each samples and grades its part while all of them
train. What they have to do together, reading sharded weights and giving each other what they sampled, they do
in the threads that train, in the same order; the threads beside those wait for nobody.
"""

import math
import threading
from collections.abc import Sequence

from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]

from sdzero.energy import Spent, added
from sdzero.errors import UserError
from sdzero.method.distill_config import SelfDistillationConfig
from sdzero.method.graded import Draw, Graded, GradedSampler, Sampled
from sdzero.method.grading import GradingAhead
from sdzero.rollout.engine import Sampling


def check_ahead(args: SelfDistillationConfig) -> None:
    """Raise UserError if the settings cannot have their rollouts one step ahead."""
    if args.policy_gradient_weight:
        raise UserError(
            "the policy gradient needs responses of the current weights, and these are one update old",
            "distill.rollouts_ahead",
            "set it to 0, or distill.policy_gradient_weight to 0",
        )


class BatchAhead:
    """A batch that is graded, and if its engine samples elsewhere also sampled, while the caller goes on.

    With an engine that samples with the very model that is trained, it is sampled before the constructor
    returns. A batch whose file is there already is read. `finish` counts and keeps it like any other.
    All processes make it, and finish it, at the same place.
    """

    def __init__(
        self, sampler: GradedSampler, draws: Sequence[Draw], sampling: Sampling, name: str, stage: str
    ) -> None:
        self.draws = draws
        self._sampler = sampler
        self._sampling = sampling
        self._name = name
        self._stage = stage
        self._waited: list[Spent] = []  # of the caller: what goes on beside the training takes none
        self._sampled: Sampled | None = None
        self._fault: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._graded = sampler.stored(draws, name)
        if self._graded is not None:
            return
        self._share = sampler.share(draws)
        self._grading = GradingAhead(sampler.grade)
        self._grading.begin()
        self._elsewhere = sampler.engine.samples_elsewhere
        if self._elsewhere:
            sampler.read_weights()
            self._thread = threading.Thread(target=self._sample, name="rollouts-ahead", daemon=True)
            self._thread.start()
            return
        watch = self._sampler.ledger.start()
        self._sample()
        self._waited.append(watch.read())
        self.wait_until_sampled()

    def wait_until_sampled(self) -> None:
        """Wait for the last response. Raises what the engine raised."""
        watch = self._sampler.ledger.start()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._waited.append(watch.read())
        if self._fault is not None:
            self.abandon()
            raise self._fault

    def finish(self) -> list[Graded]:
        """Wait for the last verdict, and count and keep the batch. Raises what engine or verifier raised."""
        if self._graded is None:
            self.wait_until_sampled()
            assert self._sampled is not None
            watch = self._sampler.ledger.start()
            graded = self._sampled.graded(self._grading.finish())
            graded = self._sampler.of_all(self.draws, self._share, graded, self._name)
            spent = added([*self._waited, watch.read()])
            self._sampler.keep(self.draws, graded, self._name, self._stage, spent)
            self._graded = graded
        return self._graded

    def abandon(self) -> None:
        """Begin no more grading, and wait for what is being sampled and graded; nothing is kept."""
        if self._graded is not None:
            return
        if self._thread is not None:
            self._thread.join()
        self._grading.abandon()

    def _sample(self) -> None:
        try:
            self._sampled = self._sampler.sample(
                self._share, self._sampling, self._grading, weights_read=self._elsewhere
            )
        # Whatever it is belongs to the caller's thread.
        except BaseException as fault:
            self._fault = fault


class QuestionOrder:
    """The numbers of each step's questions, in the order in which the trainer's data loader gives them.

    `transformers.Trainer` shuffles each epoch with accelerate's `SeedableRandomSampler`, whose order depends
    on `data_seed` and the epoch alone. An order that is not the loader's does not pass `StepRollouts`.
    """

    def __init__(self, size: int, args: SelfDistillationConfig) -> None:
        self._size = size
        self._per_step: int = (
            args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        )
        self._seed = args.seed if args.data_seed is None else args.data_seed
        self.steps_per_epoch: int = math.ceil(size / self._per_step)

    def of_step(self, step: int) -> list[int]:
        """The numbers of a step's questions; the last step of an epoch may have fewer than the others."""
        epoch, place = divmod(step, self.steps_per_epoch)
        shuffled = SeedableRandomSampler(range(self._size), data_seed=self._seed)
        shuffled.set_epoch(epoch)
        return list(shuffled)[place * self._per_step : (place + 1) * self._per_step]
