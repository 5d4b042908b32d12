"""The teacher of phase 2: the Reviser, frozen, made from an explicit checkpoint.

It is loaded from a named folder, never copied from set-up code; it is in eval mode, has no gradients
and is in no optimizer; its fingerprint is known at the start and after each sync (design, contract 5).
"""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from sdzero.adapters import merged_weights, plain_state
from sdzero.errors import UserError
from sdzero.models import read_model
from sdzero.sharded import whole_of

TEACHER_STATE = "teacher.json"
TEACHER_WEIGHTS = "teacher.safetensors"


def fingerprint(model: PreTrainedModel) -> str:
    """The sha256 of a model's parameters, by name, bit for bit (first 16 hexadecimal digits)."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        flat = parameter.detach().to("cpu").contiguous().reshape(-1)
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
        self._means: dict[str, torch.Tensor] = {}
        self._fingerprint: str | None = None
        model.train(False)
        model.requires_grad_(False)

    @property
    def fingerprint(self) -> str:
        """Of its weights as they are now."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

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

    def own_parameters(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """What of `model` is the teacher's to change: all, as it is without an adapter."""
        return dict(merged_weights(model))

    def sync(self, student: PreTrainedModel) -> None:
        """Teacher := student (paper, section 3.3, iterative self-evolution); one that is sharded is gathered,
        tensor by tensor."""
        state, own = plain_state(student), self.model.state_dict()
        if set(own) != set(state):
            raise ValueError("student and teacher have different parameters")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(whole_of(student, name, value))
        self.model.requires_grad_(False)
        self.sync_count += 1
        self._means, self._fingerprint = {}, None

    def follow(self, student: PreTrainedModel, decay: float) -> None:
        """Teacher := decay * teacher + (1 - decay) * student, parameter by parameter.

        The mean is kept in float32 where the model's own type is shorter: a small step would be lost in it.
        """
        own, student_state = self.own_parameters(self.model), self.own_parameters(student)
        if set(own) != set(student_state):
            raise ValueError("student and teacher have different parameters")
        with torch.no_grad():
            for name, parameter in own.items():
                mean = self._means.get(name)
                if mean is None:
                    exact = torch.promote_types(parameter.dtype, torch.float32)
                    mean = parameter if exact == parameter.dtype else parameter.to(exact)
                    self._means[name] = mean
                mean.lerp_(whole_of(student, name, student_state[name]).to(mean), 1.0 - decay)
                if mean is not parameter:
                    parameter.copy_(mean)
        self.steps_followed += 1
        self._fingerprint = None

    def save(self, folder: Path) -> None:
        """Save what is needed to resume: always the state, and the weights once they were synced."""
        state = {
            "source": self.source,
            "sync_count": self.sync_count,
            "steps_followed": self.steps_followed,
            "fingerprint": self.fingerprint,
        }
        if self.sync_count or self.steps_followed:
            weights = {
                name: self._means.get(name, p).detach().contiguous()
                for name, p in self.own_parameters(self.model).items()
            }
            save_file(weights, folder / TEACHER_WEIGHTS)
        (folder / TEACHER_STATE).write_text(json.dumps(state, indent=2))

    def restore(self, folder: Path) -> None:
        """Take up a saved state. Raises UserError if the weights are not those that were saved."""
        state = json.loads((folder / TEACHER_STATE).read_text())
        if state["sync_count"] or state["steps_followed"]:
            weights = load_file(folder / TEACHER_WEIGHTS)
            own = self.own_parameters(self.model)
            if set(own) != set(weights):
                raise UserError("the saved teacher has other parameters", str(folder / TEACHER_WEIGHTS))
            with torch.no_grad():
                for name, parameter in own.items():
                    parameter.copy_(weights[name])
                    if weights[name].dtype != parameter.dtype:
                        self._means[name] = weights[name].to(parameter.device)
        self.sync_count, self.steps_followed = int(state["sync_count"]), int(state["steps_followed"])
        self._fingerprint = None
        if self.fingerprint != state["fingerprint"]:
            raise UserError(
                f"the teacher's weights ({self.fingerprint}) are not those the run was saved with"
                f" ({state['fingerprint']})",
                str(folder),
                "restore the checkpoint that the teacher was loaded from, or start phase 2 anew",
            )
