"""A first recipe as text: every choice with the reason beside it."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.first_recipe.data_look import DataLook
from sdzero.first_recipe.model_look import ModelLook
from sdzero.recipe import ChatSettings

BOX = "Please reason step by step, and put your final answer within \\boxed{}."
ROOM_FOR_PHRASE = 64
"""Tokens for the control phrase and what stands around it."""
LONGEST_RESPONSE, SHORTEST_RESPONSE = 4096, 32
FEWEST_QUESTIONS = 10
LARGE, MIDDLE = 1_000_000_000, 100_000_000
"""Parameters from which a model counts as large or middle."""


@dataclass(frozen=True)
class Sizes:
    """How the questions are shared out, and how many are trained on at a time."""

    n1: int
    n2: int
    tuning: int
    test: int

    @classmethod
    def of(cls, questions: int, where: str) -> "Sizes":
        """Test and tuning set first, then N1 and N2 as 2 to 3, the paper's shares, at most 6,000 and 9,000.

        Raises UserError for too few questions.
        """
        if questions < FEWEST_QUESTIONS:
            raise UserError(
                f"there are {questions} distinct questions, and a run needs {FEWEST_QUESTIONS} or more",
                where,
                "bring more questions: some hundreds to see an effect, thousands as in the paper",
            )
        test = min(500, max(2, questions // 10))
        tuning = min(200, questions // 20)
        rest = questions - test - tuning
        n1 = min(6000, max(1, rest * 2 // 5))
        return cls(n1=n1, n2=min(9000, rest - n1), tuning=tuning, test=test)


def chat_of(model: ModelLook, data: DataLook) -> ChatSettings:
    """The instruction that the verifier needs, unless questions have it; thinking off where possible."""
    has_box = sum("\\boxed" in text for text in data.questions) > len(data.questions) / 2
    arguments = {}
    if model.thinking.is_on and model.thinking.switch is not None:
        arguments = {model.thinking.switch: False}
    return ChatSettings(
        answer_instruction=BOX if data.verifier != "code" and not has_box else None,
        template_arguments=arguments,
    )


def response_length(model: ModelLook, data: DataLook, longest_prompt: int) -> int:
    """The longest response of which two fit the context beside the longest prompt and a control phrase.

    Raises UserError if that leaves too little.
    """
    if model.context is None:
        return LONGEST_RESPONSE
    room = (model.context - longest_prompt - ROOM_FOR_PHRASE) // 2
    if room < SHORTEST_RESPONSE:
        raise UserError(
            f"the model's context of {model.context} tokens has no room for two responses beside the longest"
            f" prompt of {longest_prompt}",
            data.path,
            "leave the longest questions out, or use a model with a longer context",
        )
    return min(LONGEST_RESPONSE, room)


def recipe_name(model: ModelLook, data: DataLook) -> str:
    """A name for the run's folder, of the model's and the data's names."""
    words = f"{Path(model.path).name}-{Path(data.path).stem}"
    return re.sub(r"[^a-z0-9.]+", "-", words.lower().replace(":", "-")).strip("-.") or "first"


def recipe_text(model: ModelLook, data: DataLook) -> str:
    """The recipe, commented. It loads, and asks for no more questions than there are."""
    chat = chat_of(model, data)
    prompts = model.prompt_lengths(data.questions, chat)
    longest = max(prompts)
    length = response_length(model, data, longest)
    sizes = Sizes.of(len(data.questions), data.path)
    is_large = model.parameters >= LARGE
    rate = 5e-6 if is_large else 2e-5 if model.parameters >= MIDDLE else 2e-4
    why_rate = "the paper's authors'" if is_large else "a first guess for a model of this size"
    micro = 1 if is_large else 8
    batch = 64 if sizes.n1 >= 2000 else 16
    step = 128 if sizes.n2 >= 4000 else 32 if sizes.n2 >= 400 else 8
    dtype = "bfloat16" if model.dtype in ("BF16", "F16") else "float32"
    training = [  # of SRT, and of the control in the same way
        "  schedule: cosine",
        "  warmup_ratio: 0.05",
        f"  batch_size: {batch}",
        f"  micro_batch_size: {micro}",
        "  epochs: 3",
        "  checkpoint_every: 50",
    ]
    head = [
        f"# A first recipe for {model.path} on {data.path}, made by `sdzero init`.",
        "# Each value has its reason beside it. Read it, then: sdzero doctor FILE; sdzero run FILE",
        "# --dry-run; sdzero run FILE. All keys and defaults are in docs/recipes.md.",
        f"name: {_scalar(recipe_name(model, data))}",
        "seed: 0",
        "",
        "model:",
        f"  path: {_scalar(model.path)} # {model.architecture}, {model.size}",
        f"  dtype: {dtype} # the weights are stored as {model.dtype}",
        "  device: auto # the GPU if there is one",
        f"  gradient_checkpointing: {_scalar(is_large)} # memory for time",
        "",
        "chat:",
        "  system_prompt: null",
        f"  answer_instruction: {_scalar(chat.answer_instruction)} # {_why_instruction(chat, data)}",
        f"  template_arguments: {json.dumps(chat.template_arguments)} # {_why_arguments(model)}",
        "",
        *_data_lines(data, sizes),
        "",
        "verifier:",
        f"  name: {data.verifier} # {data.evidence}",
        "  workers: 2",
        f"  timeout_seconds: {60.0 if data.verifier == 'code' else 5.0}",
        "",
        "collect: # phase 1a",
        "  temperature: 0.7 # the paper's",
        f"  max_new_tokens: {length} # {_why_length(model, longest)}",
        "  batch_size: 64 # responses that are kept at a time",
        "  initial_per_question: 2",
        "  revisions_per_initial: 3 # the paper's",
        "  revise_correct: true # the paper's",
        "",
        "srt: # phase 1b",
        f"  learning_rate: {_number(rate)} # {why_rate}",
        *training,
        "",
        "distill: # phase 2",
        f"  learning_rate: {_number(rate)} # {why_rate}",
        "  schedule: constant_with_warmup",
        f"  warmup_steps: {min(20, max(1, sizes.n2 // step // 4))}",
        f"  batch_size: {step} # questions a step",
        f"  micro_batch_size: {micro}",
        "  temperature: 0.7 # the paper's",
        f"  max_new_tokens: {length}",
        "  divergence: reverse # the paper's",
        "  epochs: 1 # the paper's",
        "  checkpoint_every: 10",
        "",
        "rft: # the control: as many responses as SD-Zero, only the right ones trained on",
        "  enabled: true",
        f"  learning_rate: {_number(rate)} # as in srt",
        *training,
        "",
        "evaluate:",
        "  k: 4 # responses a question",
        "  temperature: 0.7 # the paper's",
        f"  max_new_tokens: {length}",
        "  batch_size: 64",
    ]
    return "\n".join(head) + "\n"


def _data_lines(data: DataLook, sizes: Sizes) -> list[str]:
    lines = ["data:", f"  source: {data.source}"]
    if data.tasks:
        pool = max(len(data.questions), sizes.n1 + sizes.n2 + sizes.tuning + sizes.test)
        lines += [f"  tasks: {json.dumps(list(data.tasks))}", f"  pool: {pool}"]
    else:
        lines.append(f"  path: {_scalar(data.path)} # {data.rows:,} rows")
    if data.fields is not None:
        lines.append("  fields:")
        for key in ("question", "answer", "id", "kind", "solution"):
            column = getattr(data.fields, key)
            if column is not None:
                lines.append(f"    {key}: {_scalar(column)} # {data.fields.evidence[key]}")
        if data.metadata:
            lines.append(f"    metadata: {json.dumps(list(data.metadata))} # the tests go to the verifier")
    if not data.tasks:
        faulty = "drop" if data.conflicts or data.empty or data.fields is None else "error"
        lines.append(
            f"  faulty: {faulty} # {data.empty:,} rows that cannot be used, {data.conflicts:,} questions with"
            " two answers"
        )
    lines += [
        f"  n1: {sizes.n1} # of {len(data.questions):,} distinct questions; n1 : n2 is 2 : 3 as in the paper",
        f"  n2: {sizes.n2}",
        f"  tuning: {sizes.tuning} # choices are made on these, never on the test set",
        f"  test: {sizes.test}",
    ]
    return lines


def _why_instruction(chat: ChatSettings, data: DataLook) -> str:
    if chat.answer_instruction is not None:
        return f"the verifier `{data.verifier}` reads the last box"
    return "the questions say it themselves"


def _why_arguments(model: ModelLook) -> str:
    thinking = model.thinking
    if thinking.kind == "none":
        return "the template shows no thinking model"
    seen = "; ".join(thinking.seen)
    if thinking.switch is not None:
        return f"a thinking model ({seen}); thinking is turned off, see docs/thinking.md"
    return f"a thinking model ({seen}); see docs/thinking.md"


def _why_length(model: ModelLook, longest: int) -> str:
    counted = "counted" if model.counts_tokens else "estimated"
    context = "no limit is known" if model.context is None else f"the context has {model.context} tokens"
    return f"{context}, the longest prompt {longest} ({counted}), and two responses must fit"


def _number(value: float) -> str:
    return f"{value:.1e}"


def _scalar(value: Any) -> str:
    """A value as YAML: JSON is YAML, and plain words stay plain."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_./-]*", value):
        return value if value.casefold() not in ("true", "false", "null", "yes", "no") else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)
