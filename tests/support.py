"""What several tests are made with: a micro recipe, the command, and engines and graders that obey."""

import copy
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from forked import ForkedCommand
from sdzero.ledger import Ledger
from sdzero.method.graded import GradedSampler
from sdzero.method.roles import Roles
from sdzero.models import load_tokenizer
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, CollectSettings, PhraseSettings
from sdzero.rollout.engine import Request, Response, Sampling
from sdzero.run_dir import RunDir
from sdzero.verify.verdict import Outcome, Verdict

PHRASES = PhraseSettings()

MICRO: dict[str, Any] = {
    "name": "micro",
    "seed": 3,
    "model": {"path": "tiny", "device": "cpu"},
    "data": {"source": "arithmetic", "n1": 24, "n2": 24, "tuning": 4, "test": 6},
    "verifier": {"name": "math", "workers": 1},
    "collect": {"revisions_per_initial": 2, "max_new_tokens": 64, "batch_size": 12, "max_context": 400},
    "srt": {
        "learning_rate": 3.0e-4,
        "warmup_steps": 1,
        "batch_size": 4,
        "micro_batch_size": 2,
        "epochs": 1,
        "checkpoint_every": 2,
    },
    "distill": {
        "learning_rate": 2.0e-4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "max_new_tokens": 64,
        "checkpoint_every": 2,
        "sync": "steps",
        "sync_every": 2,
        "rehearsal_weight": 0.3,
        "rehearsal_batch_size": 2,
    },
    "rft": {
        "learning_rate": 3.0e-4,
        "batch_size": 4,
        "micro_batch_size": 2,
        "epochs": 1,
        "checkpoint_every": 2,
    },
    "sft": {
        "demonstrations": "answers",
        "learning_rate": 3.0e-4,
        "batch_size": 8,
        "micro_batch_size": 4,
        "epochs": 1,
    },
    "grpo": {
        "learning_rate": 2.0e-4,
        "batch_size": 16,
        "micro_batch_size": 8,
        "responses_per_question": 2,
        "max_new_tokens": 64,
    },
    "sdft": {"learning_rate": 1.0e-4, "batch_size": 16, "micro_batch_size": 8, "max_new_tokens": 64},
    "negative": {"learning_rate": 1.0e-4, "batch_size": 16, "micro_batch_size": 8, "max_new_tokens": 64},
    "compare": {"rate_factors": [0.5, 1.0]},
    "evaluate": {"k": 2, "max_new_tokens": 64, "batch_size": 6},
}
"""Every stage on the embedded model in seconds; the teacher is synced, and traces are rehearsed."""


def micro_recipe(folder: Path, changes: Mapping[str, Mapping[str, Any]] | None = None) -> Path:
    """Write the micro recipe into `folder`, with `changes` (section -> keys) on top; returns its path."""
    values = copy.deepcopy(MICRO)
    for section, keys in (changes or {}).items():
        values.setdefault(section, {}).update(keys)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "micro.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def command(*arguments: str | Path) -> list[str]:
    """The command line of `sdzero` with these arguments."""
    return [sys.executable, "-m", "sdzero.cli", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, with the source on the path of processes that it starts."""
    source = str(Path(__file__).parents[1] / "src")
    return os.environ | {"PYTHONPATH": os.pathsep.join([source, os.environ.get("PYTHONPATH", "")])}


def started(*arguments: str | Path, **keywords: Any) -> ForkedCommand:
    """Start the command in a process of its own (see `forked`)."""
    keywords.setdefault("env", environment())
    return ForkedCommand([str(argument) for argument in arguments], **keywords)


def sdzero(*arguments: str | Path, timeout: float = 120, **keywords: Any) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, for at most `timeout` seconds."""
    process = started(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **keywords)
    out, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(command(*arguments), process.wait(), out, errors)


def sdzero_afresh(
    *arguments: str | Path, timeout: float = 120, prefix: Sequence[str] = (), **keywords: Any
) -> subprocess.CompletedProcess[str]:
    """The same in a new interpreter, for what the environment decides when modules are imported,
    after the words of `prefix`."""
    keywords.setdefault("env", environment())
    return subprocess.run(
        [*prefix, *command(*arguments)], capture_output=True, text=True, timeout=timeout, **keywords
    )


SECRETS = {
    "HF_TOKEN": "hf_aTokenThatStaysInTheEnvironment",
    "HUGGING_FACE_HUB_TOKEN": "hf_anotherTokenThatStays",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
}
"""Variables that a user may have set, with values that are found nowhere else."""


def read_jsonl(path: Path) -> list[Any]:
    """One JSON value a line."""
    return [json.loads(line) for line in path.read_text().splitlines()]


TIMED = ("seconds", "device_seconds", "joules", "points_per_device_hour", "cost")
"""What differs from run to run."""


def without_seconds(data: Any) -> Any:
    """JSON-like data less every key of `TIMED`."""
    if isinstance(data, dict):
        return {key: without_seconds(value) for key, value in data.items() if key not in TIMED}
    return data


def make_questions(count: int) -> list[Question]:
    """Questions `q0`, `q1`, ... whose texts name them."""
    return [Question(f"q{number}", f"question {number}?", str(number)) for number in range(count)]


class ScriptedEngine:
    """Answers by a script: (the prompt's text, how often it was asked before) -> the response's text.

    A text that ends in `...` is cut by the length limit and has no end token.
    """

    def __init__(self, roles: Roles, tokenizer: Any, script: Callable[[str, int], str]) -> None:
        self._roles, self._tokenizer, self._script = roles, tokenizer, script
        self.requests: list[Request] = []
        self.batches: list[int] = []
        self.weight_version = 5
        self.max_context: int | None = None
        self.samples_elsewhere = False

    def take_weights(self, model: Any, steps: int = 1) -> None:
        self.weight_version += steps

    def rest(self) -> None:
        """It has no memory to give back."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        responses = []
        self.batches.append(len(requests))
        for request in requests:
            asked = sum(request.prompt_ids == before.prompt_ids for before in self.requests)
            self.requests.append(request)
            text = self._script(self._tokenizer.decode(request.prompt_ids), asked)
            ids = self._tokenizer.encode(text, add_special_tokens=False)
            if text.endswith("..."):
                responses.append(Response(tuple(ids), "length", self.weight_version))
            else:
                responses.append(Response((*ids, self._roles.end_token_id), "end", self.weight_version))
        return responses


class GradeByWord:
    """`right` in the text is correct, `broken` is our own fault, anything else is wrong; keeps the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, items: Sequence[tuple[Question, str]]) -> list[Verdict]:
        self.texts += [text for _, text in items]
        return [Verdict(self._outcome(text)) for _, text in items]

    @staticmethod
    def _outcome(text: str) -> Outcome:
        if "broken" in text:
            return Outcome.ERROR
        return Outcome.CORRECT if "right" in text else Outcome.WRONG


def in_turn(*outcomes: Outcome) -> Callable[[Sequence[tuple[Question, str]]], list[Verdict]]:
    """A grader that gives these outcomes in turn, whatever it is asked, in however many calls."""
    endless = itertools.cycle(outcomes)
    return lambda items: [Verdict(next(endless)) for _ in items]


class Bench:
    """A sampler on a scripted engine, with everything around it kept in `folder`."""

    def __init__(self, folder: Path, script: Callable[[str, int], str]) -> None:
        folder.mkdir(exist_ok=True)
        self.tokenizer = load_tokenizer("tiny")
        self.roles = Roles(self.tokenizer, PHRASES, ChatSettings())
        self.engine = ScriptedEngine(self.roles, self.tokenizer, script)
        self.grade = GradeByWord()
        self.run = RunDir.unlocked(folder)
        self.ledger = Ledger(self.run.path("ledger.jsonl"))
        self.sampler = GradedSampler(self.engine, self.roles, self.grade, self.run, self.ledger)

    def ids(self, text: str) -> tuple[int, ...]:
        """The ids that the engine gives for a text, end token included."""
        return (*self.tokenizer.encode(text, add_special_tokens=False), self.roles.end_token_id)


def is_revision(prompt: str) -> bool:
    """Whether a prompt's text is a Reviser's context."""
    return PHRASES.wrong in prompt or PHRASES.correct in prompt


def collect_settings(**changes: Any) -> CollectSettings:
    """Settings of collection: one revision, small batches."""
    return CollectSettings(**{"max_new_tokens": 32, "batch_size": 2, "revisions_per_initial": 1} | changes)
