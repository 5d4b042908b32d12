"""Is the policy a thinking model? Told from its chat template, before anything is sampled.

Thinking models (long chains with honest false starts, before the answer) are a limit that the paper names.
Whether a model is one shows in how its template writes a prompt, so the template is asked: it is rendered
with the recipe's arguments, and with thinking turned on and off where it reads a variable for that. Marks
among the added tokens are no sign: instruct models share their tokenizer with thinking ones (Qwen3-2507).
Nor can weights be asked: a model that thinks without any mark is not found. Imports no torch.

Marks, as the public templates have them: `<think>` in Qwen3, DeepSeek-R1, Olmo-3-Think, Nemotron and GLM;
`[THINK]` in Magistral and Ministral; channels in gpt-oss and Gemma 4; the others in Command A Reasoning,
Seed-OSS and Kimi-VL.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from sdzero.recipe import ChatSettings
from sdzero.recipe_distill import DistillSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|channel|>analysis<|message|>", "<|channel|>final<|message|>"),
    ("<|channel>thought", "<channel|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
"""What begins and what ends thinking, in one response or prompt."""

OPENING = tuple(opening for opening, _ in MARKS)
CLOSING = tuple(closing for _, closing in MARKS)

SWITCHES = ("enable_thinking", "thinking")
"""Variables by which templates turn thinking on and off: Qwen3 and most others; Granite and DeepSeek-V3.1."""

_PROBE = "PROBE"
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_HISTORY = re.compile(r"\breasoning_content\b|\.thinking\b|[\"']thinking[\"']")
"""How templates read the thoughts of earlier turns."""


@dataclass(frozen=True)
class Thinking:
    """What a chat template says. `seen` are the signs, for people; `is_on`: with the recipe's arguments.

    `always` has no variable that turns it off; `switchable` has `switch`, which is off when false. It is not
    `certain` where the template can only show thoughts of earlier turns, and leaves the model to begin them.
    """

    kind: Literal["none", "always", "switchable"]
    seen: tuple[str, ...] = ()
    is_on: bool = False
    switch: str | None = None
    certain: bool = True


def thinking_of(tokenizer: "PreTrainedTokenizerBase", chat: ChatSettings) -> Thinking:
    """Look at the tokenizer's chat template with the recipe's arguments and system prompt.

    Raises jinja2's TemplateError if the template refuses the conversation (`Roles` tells a user so).
    """
    template = _COMMENT.sub("", tokenizer.get_chat_template())

    def prompt(**more: Any) -> str:
        rendered = tokenizer.apply_chat_template(
            chat.messages(_PROBE),
            add_generation_prompt=True,
            tokenize=False,
            **(chat.template_arguments | more),
        )
        return cast("str", rendered)

    own = prompt()
    for switch in SWITCHES:
        if re.search(rf"\b{switch}\b", template) and prompt(**{switch: True}) != prompt(**{switch: False}):
            is_on = own != prompt(**{switch: False})
            return Thinking("switchable", (f"the template reads `{switch}`",), is_on, switch)
    begun = own.rpartition(_PROBE)[2]
    opened = max(OPENING, key=begun.rfind)
    if begun.rfind(opened) >= 0 and begun.rstrip().endswith(CLOSING):
        return Thinking("none", (f"the prompt opens `{opened}` and ends it at once",))
    seen = []
    if begun.rfind(opened) >= 0:
        seen.append(f"the prompt ends within `{opened}`")
    seen += [f"the prompt speaks of `{mark}`" for mark in OPENING if mark in own.rpartition(_PROBE)[0]]
    if seen:
        return Thinking("always", tuple(seen), is_on=True)
    seen += [f"the template has `{mark}`" for mark in OPENING + CLOSING if mark in template]
    if _HISTORY.search(template):
        seen.append("the template reads the thoughts of earlier turns")
    return Thinking("always", tuple(seen), is_on=True, certain=False) if seen else Thinking("none")


def thinking_warning(thinking: Thinking, distill: DistillSettings) -> str | None:
    """What to tell a user whose model thinks while every token carries the divergence; else None."""
    if not thinking.is_on or distill.divergence_on != "all":
        return None
    ways = [
        "use an instruct model",
        "keep the divergence to a part of each response with distill.divergence_on",
    ]
    if thinking.switch is not None:
        ways.insert(0, f"turn it off with chat.template_arguments={{{thinking.switch}: false}}")
    name = f"this {'is' if thinking.certain else 'may be'} a thinking model ({'; '.join(thinking.seen)})"
    return (
        f"{name}. Its responses are long chains with honest false starts, which the paper names as a limit of"
        " SD-Zero: the Reviser has read where a chain leads, and phase 2 may teach the model to skip the"
        f" search. To do: {', or '.join(ways)} (docs/thinking.md)"
    )
