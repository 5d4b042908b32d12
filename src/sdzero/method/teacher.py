"""The teacher of phase 2: the Reviser, frozen, made from an explicit checkpoint.

It is loaded from a named folder, never copied from set-up code; it is in eval mode, has no gradients
and is in no optimizer; its fingerprint is known at the start and after each sync (design, contract 5).

Here its weights are whole, on the device that trains. Where they are elsewhere is in `streamed_teacher` and
`sharded_teacher`, which change what is marked below as theirs to change.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sdzero.adapters import merged_weights, plain_state
from sdzero.errors import UserError
from sdzero.method.hidden import PROBE_TOKENS, check_logits, hidden_states, output_head, probe_ids
from sdzero.models import read_model
from sdzero.packed_attention import check_packing
from sdzero.sharded import whole, without_zero

TEACHER_STATE = "teacher.json"
TEACHER_WEIGHTS = "teacher.safetensors"

Found = TypeVar("Found")


def fingerprint(model: PreTrainedModel) -> str:
    """The sha256 of a model's parameters, by name, bit for bit (first 16 hexadecimal digits)."""
    return fingerprint_of(sorted(model.named_parameters()))


def fingerprint_of(weights: Iterable[tuple[str, Tensor]]) -> str:
    """The same of named weights, which come in the order of their names."""
    digest = hashlib.sha256()
    for name, weight in weights:
        digest.update(name.encode())
        flat = weight.detach().to("cpu").contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


class Teacher:
    """A frozen model, and how often it was made anew from the student."""

    def __init__(self, model: PreTrainedModel, source: str) -> None:
        self.model = model
        self.source = source
        self.sync_count = 0
        self.steps_followed = 0
        """How often it has moved towards the student (`follow`)."""
        self._means: dict[str, Tensor] = {}
        self._fingerprint: str | None = None
        model.train(False)
        model.requires_grad_(False)

    @classmethod
    def load(
        cls, folder: str | Path, dtype: torch.dtype, device: torch.device | str, attention: str = "sdpa"
    ) -> "Teacher":
        """Load the teacher from a checkpoint folder. Raises UserError if there is no whole model."""
        if not (Path(folder) / "config.json").is_file():
            raise UserError(
                "the teacher's checkpoint is not a model folder (it has no config.json)",
                str(folder),
                "name a folder that save_pretrained wrote",
            )
        model = read_model(str(folder), dtype, attention)
        model.to(device)  # type: ignore[arg-type]
        return cls(model, str(folder))

    # ---- where its weights are: what other placements change ----

    is_sharded = False
    """Whether each process holds a part of it, so that all of them take part in what is done with it."""

    @property
    def device(self) -> torch.device:
        """Where its passes are made."""
        return self.model.device

    def place(self, accelerator: Accelerator) -> None:
        """Take the place that it is to have in training; the trainer calls it once, before any pass."""

    def own_parameters(self, model: PreTrainedModel) -> dict[str, Tensor]:
        """What of `model` is the teacher's to change: all, as it is without an adapter."""
        return dict(merged_weights(model))

    def weights(self) -> dict[str, Tensor]:
        """Its own parameters by name, as far as this process holds them, to be read and written."""
        return self.own_parameters(self.model)

    def state(self) -> dict[str, Tensor]:
        """Its whole state by name, buffers too, as far as this process holds it, to be written."""
        return dict(self.model.state_dict())

    def part(self, name: str, tensor: Tensor) -> Tensor:
        """What this process holds of a weight, of the weight's value, whole or sharded."""
        return whole(tensor)

    def gathered(self, name: str, part: Tensor) -> Tensor:
        """The whole of a weight, of what each process holds of it."""
        return part

    def run(self, work: Callable[[], Found]) -> Found:
        """What `work` returns, which calls the model's decoder."""
        return work()

    def logits(self, ids_BT: Tensor) -> Tensor:
        """[B, T, V]: what the model itself says."""
        found: Tensor = self.model(input_ids=ids_BT, use_cache=False).logits
        return found

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Its head's weight [V, D] and bias [V], whole, where the hidden states are."""
        head = output_head(self.model)
        return head.weight, head.bias

    def join(self, passes: int, token_id: int) -> None:
        """Take part in other processes' passes and in one use of their head, with nothing of one's own."""

    # ---- its passes ----

    @torch.no_grad()
    def hidden_states(
        self, ids_BT: Tensor, positions_N: Tensor, lengths: Sequence[int] | None = None
    ) -> Tensor:
        """[N, D]: see `sdzero.method.hidden.hidden_states`."""
        return self.run(lambda: hidden_states(self.model, ids_BT, positions_N, lengths))

    def check(self, packed: bool) -> None:
        """Raise UserError if the divergence cannot be taken from its hidden states and its head, or if it is
        to read packed rows and cannot."""
        ids_BT = probe_ids(self.device)
        with torch.no_grad():
            expected_TV = self.logits(ids_BT)[0]
            hidden_TD = self.hidden_states(ids_BT, torch.arange(PROBE_TOKENS))
            check_logits(self.model, torch.nn.functional.linear(hidden_TD, *self.head()), expected_TV)
            if packed:
                self.run(lambda: check_packing(self.model, self.device))

    # ---- its weights ----

    @property
    def fingerprint(self) -> str:
        """Of its weights as they are now."""
        if self._fingerprint is None:
            self._fingerprint = self.find_fingerprint()
        return self._fingerprint

    def find_fingerprint(self) -> str:
        """The fingerprint, from the weights."""
        own = sorted(self.weights().items())
        return fingerprint_of((name, self.gathered(name, part)) for name, part in own)

    def sync(self, student: PreTrainedModel) -> None:
        """Teacher := student (paper, section 3.3, iterative self-evolution); one that is sharded is gathered,
        tensor by tensor."""
        state, own = plain_state(student), self.state()
        if set(own) != set(state):
            raise ValueError("student and teacher have different parameters")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(self.part(name, without_zero(student, name, value)))
        self.model.requires_grad_(False)
        self.sync_count += 1
        self._means, self._fingerprint = {}, None

    def follow(self, student: PreTrainedModel, decay: float) -> None:
        """Teacher := decay * teacher + (1 - decay) * student, parameter by parameter.

        The mean is kept in float32 where the model's own type is shorter: a small step would be lost in it.
        """
        own, student_state = self.weights(), self.own_parameters(student)
        if set(own) != set(student_state):
            raise ValueError("student and teacher have different parameters")
        with torch.no_grad():
            for name, parameter in own.items():
                mean = self._means.get(name, parameter)
                exact = torch.promote_types(parameter.dtype, torch.float32)
                if mean.dtype != exact:
                    mean = self._means[name] = parameter.to(exact)
                value = without_zero(student, name, student_state[name])
                mean.lerp_(self.part(name, value).to(mean), 1.0 - decay)
                if mean is not parameter:
                    parameter.copy_(mean)
        self.steps_followed += 1
        self._fingerprint = None

    # ---- saving and resuming ----

    def save(self, folder: Path, writes: bool = True) -> None:
        """Save what is needed to resume: always the state, and the weights once they were synced.

        All processes call it, for the weights may have to be gathered; one of them `writes`.
        """
        if not (writes or self.is_sharded):
            return
        state = {
            "source": self.source,
            "sync_count": self.sync_count,
            "steps_followed": self.steps_followed,
            "fingerprint": self.fingerprint,
        }
        weights: dict[str, Tensor] = {}
        if self.sync_count or self.steps_followed:
            for name, own in self.weights().items():
                value = self.gathered(name, self._means.get(name, own).detach())
                if writes:
                    weights[name] = value.to("cpu").contiguous()
        if writes:
            if weights:
                save_file(weights, folder / TEACHER_WEIGHTS)
            (folder / TEACHER_STATE).write_text(json.dumps(state, indent=2))

    def restore(self, folder: Path) -> None:
        """Take up a saved state. Raises UserError if the weights are not those that were saved."""
        state = json.loads((folder / TEACHER_STATE).read_text())
        if state["sync_count"] or state["steps_followed"]:
            own = self.weights()
            with safe_open(folder / TEACHER_WEIGHTS, framework="pt") as stored, torch.no_grad():
                if set(own) != set(stored.keys()):
                    raise UserError("the saved teacher has other parameters", str(folder / TEACHER_WEIGHTS))
                for name, parameter in own.items():
                    value = self.part(name, stored.get_tensor(name))
                    parameter.copy_(value)
                    if value.dtype != parameter.dtype:
                        self._means[name] = value.to(parameter.device)
        self.sync_count, self.steps_followed = int(state["sync_count"]), int(state["steps_followed"])
        self._fingerprint = None
        if self.fingerprint != state["fingerprint"]:
            raise UserError(
                f"the teacher's weights ({self.fingerprint}) are not those the run was saved with"
                f" ({state['fingerprint']})",
                str(folder),
                "restore the checkpoint that the teacher was loaded from, or start phase 2 anew",
            )
