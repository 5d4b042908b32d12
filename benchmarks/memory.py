"""Peak memory of the loss and of a step: ours, the dense one, and TRL's; one process for each figure.

    python benchmarks/memory.py --what step --who ours --tokens 4096

A figure is the peak resident set less what any update needs whatever its loss: the interpreter with its
libraries, both models' weights, the student's gradients and both moments of AdamW. For the loss alone it is
the peak less what stands in memory before it: hidden states, heads, and room for their gradients.

`dense` is the textbook loss in our own trainer: logits of the whole response from both heads, two
log-softmaxes, autograd. `trl` is for the step TRL's SDFT trainer, which is dense too, and for the loss the
chunked kernel of its Distillation trainer.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from entries import Entry, Found
from shapes import SHAPES, Shape, make_folder, questions_of, recorded_responses, roles_of
from step import Recorded, our_step
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from sdzero.method.divergence import divergence_from_hidden
from sdzero.method.hidden import output_head
from sdzero.method.objectives import ReviserDivergence, TokenLosses
from sdzero.method.teacher import Teacher
from sdzero.recipe_distill import DistillSettings

What = Literal["loss", "step"]
Who = Literal["ours", "dense", "trl"]

MODEL, TOKENS = "70m", 4096
LESS = (2048, 1024)
"""Tokens that are measured where the dense path with `TOKENS` does not fit."""
DENSE_TENSORS = 7
"""Tensors of [tokens, vocabulary] at the peak of a dense path: 6.5 were measured of TRL's, 4.7 of `dense`."""
SPARE = 2 << 30
"""Bytes of the machine's memory that are left alone."""
AT_MOST_DENSE = 0.25
WARM_UP_TOKENS = 8
FLOAT = 4
"""Bytes."""


def dense_divergence(
    student_TD: Tensor, teacher_TD: Tensor, student_VD: Tensor, teacher_VD: Tensor
) -> tuple[Tensor, Tensor]:
    """[T] both: the reverse KL of each token, with whole logits and autograd, and the student's entropy."""
    s_TV = (student_TD @ student_VD.T).log_softmax(-1)
    with torch.no_grad():
        t_TV = (teacher_TD @ teacher_VD.T).log_softmax(-1)
        entropy_T = -(s_TV.exp() * s_TV).sum(-1)
    return (s_TV.exp() * (s_TV - t_TV)).sum(-1), entropy_T


class DenseReviser(ReviserDivergence):
    """SD-Zero's objective with the dense loss."""

    def divergence(
        self,
        student: PreTrainedModel,
        student_hidden_TD: Tensor,
        teacher: Teacher,
        inputs: dict[str, Any],
        weights_T: Tensor | None,
    ) -> TokenLosses:
        """The divergence from whole logits."""
        with torch.no_grad():
            teacher_hidden_TD = self.teacher_hidden(teacher, inputs)
        heads = output_head(student).weight, output_head(teacher.model).weight
        per_token_T, entropy_T = dense_divergence(student_hidden_TD, teacher_hidden_TD, *heads)
        total = per_token_T.sum() if weights_T is None else (per_token_T * weights_T).sum()
        return TokenLosses(total, per_token_T.detach(), entropy_T)


def resident(which: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of this process in memory: now, or at the peak since it began or `forget_peak` was called."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {which}")


def forget_peak() -> None:
    """Let the peak begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def loss_bytes(who: Who, shape: Shape, tokens: int) -> int:
    """The peak of the loss and its gradients beyond what stood before it."""
    if who == "trl":
        importlib.import_module("trl.trainer.distillation_trainer")  # its libraries are not the loss's
    torch.manual_seed(0)
    hidden = [torch.randn(tokens, shape.width) for _ in range(2)]
    heads = [0.02 * torch.randn(shape.vocabulary, shape.width) for _ in range(2)]
    student_TD, student_VD = hidden[0].requires_grad_(), heads[0].requires_grad_()
    gradients = [torch.ones_like(student_TD), torch.ones_like(student_VD)]
    before = resident("VmRSS")
    del gradients
    forget_peak()
    loss_of(who, student_TD, hidden[1], student_VD, heads[1]).backward()
    return resident("VmHWM") - before


def loss_of(
    who: Who, student_TD: Tensor, teacher_TD: Tensor, student_VD: Tensor, teacher_VD: Tensor
) -> Tensor:
    """The sum over tokens of the reverse KL."""
    if who == "dense":
        return dense_divergence(student_TD, teacher_TD, student_VD, teacher_VD)[0].sum()
    if who == "trl":
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        mask = torch.ones(1, len(student_TD), dtype=torch.long)
        everything = student_TD[None], teacher_TD[None], student_VD, teacher_VD, mask
        total: Tensor = _chunked_divergence_loss(*everything, 1.0, 1)[0]
        return total
    chunk = DistillSettings.model_fields["chunk_tokens"].default
    return divergence_from_hidden(student_TD, teacher_TD, student_VD, teacher_VD, "reverse", chunk).total


def step_bytes(who: Who, shape: Shape) -> int:
    """The peak of a step on recorded responses beyond libraries, weights, gradients and moments."""
    with tempfile.TemporaryDirectory() as place:
        workplace = Path(place)
        folder = workplace / "model"
        if shape.name != "tiny":
            make_elsewhere(shape, folder)
        else:
            folder = make_folder(shape, folder)
        roles = roles_of(AutoTokenizer.from_pretrained(folder))
        recorded = recorded_responses(shape, roles, questions_of(shape, roles))
        whole = dict(recorded)
        if who == "trl":
            from peers import PeerStep

            libraries = resident("VmRSS")
            peer = PeerStep("sdft", shape, folder, workplace, recorded)
            return peak_of_step(peer, recorded, whole) - libraries
        libraries = resident("VmRSS")
        objective = DenseReviser("reverse", shape.response_tokens) if who == "dense" else None
        with our_step(shape, folder, workplace, recorded=recorded, objective=objective) as ours:
            return peak_of_step(ours, recorded, whole) - libraries


def peak_of_step(step: Any, recorded: dict[tuple[int, ...], list[int]], whole: Recorded) -> int:
    """The peak of a step less weights, gradients and moments, which a short step before it has made."""
    peak = peak_after_warm_up(step, recorded, whole)
    return peak - needed_anyway(sum(p.numel() for p in step.model.parameters()))


def peak_after_warm_up(step: Any, recorded: dict[tuple[int, ...], list[int]], whole: Recorded) -> int:
    """Bytes resident at the peak of a step with whole responses, after one with short ones."""
    recorded.update({prompt: list(ids[:WARM_UP_TOKENS]) for prompt, ids in whole.items()})
    step.turn()
    recorded.update({prompt: list(ids) for prompt, ids in whole.items()})
    forget_peak()
    step.turn()
    return resident("VmHWM")


def needed_anyway(parameters: int) -> int:
    """Bytes of the student's and the teacher's weights, the gradients and two moments, all float32."""
    return 5 * FLOAT * parameters


def make_elsewhere(shape: Shape, folder: Path) -> None:
    """Make the model in a process of its own, so that making it leaves nothing in this one."""
    command = [sys.executable, __file__, "--make", str(folder), "--model", shape.name]
    subprocess.run(command, check=True)


def measured_apart(what: What, who: Who, model: str, tokens: int) -> int:
    """Bytes, from a process of its own."""
    command = [sys.executable, __file__, "--what", what, "--who", who]
    command += ["--model", model, "--tokens", str(tokens)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return int(json.loads(done.stdout.splitlines()[-1])["bytes"])


def fitting(model: str, wanted: int, available: int) -> int:
    """The most tokens, of what is wanted and of `LESS`, with which the dense path fits the memory."""
    for tokens in (wanted, *LESS):
        if DENSE_TENSORS * FLOAT * tokens * SHAPES[model].vocabulary + SPARE <= available:
            return tokens
    raise SystemExit(f"the dense path does not fit {available >> 30} GB even with {LESS[-1]} tokens")


def available_bytes() -> int:
    """What the machine has left."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) << 10
    raise OSError("/proc/meminfo has no MemAvailable")


def memory(
    model: str = MODEL,
    wanted: int = TOKENS,
    measure: Callable[[What, Who, str, int], int] = measured_apart,
) -> Found:
    """Ours against the dense loss and against TRL's, of the loss and of the step."""
    tokens = fitting(model, wanted, available_bytes())
    found = Found(details={"memory": {"model": model, "tokens": tokens, "wanted": wanted, "bytes": {}}})
    for what in ("loss", "step"):
        taken = {who: measure(what, who, model, tokens) for who in ("ours", "dense", "trl")}  # type: ignore
        found.details["memory"]["bytes"][what] = taken
        for other in ("dense", "trl"):
            target = AT_MOST_DENSE if (what, other) == ("step", "dense") else None
            ratio = taken["ours"] / taken[other]
            found.entries.append(Entry(f"memory-{model}/{what}/{other}", ratio, target, "lower", 1))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--what", choices=["loss", "step"], default="step")
    parser.add_argument("--who", choices=["ours", "dense", "trl"], default="ours")
    parser.add_argument("--model", choices=list(SHAPES), default=MODEL)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of one response (default: 4096)")
    parser.add_argument("--make", type=Path, help="only make the model, in this folder")
    arguments = parser.parse_args()
    shape = replace(SHAPES[arguments.model], response_tokens=arguments.tokens, batch=1)
    if arguments.make is not None:
        make_folder(shape, arguments.make)
        return
    if arguments.what == "loss":
        taken = loss_bytes(arguments.who, shape, arguments.tokens)
    else:
        taken = step_bytes(arguments.who, shape)
    print(json.dumps({"what": arguments.what, "who": arguments.who, "bytes": taken}))


if __name__ == "__main__":
    main()
