"""Thinking models are told from their templates: short ones in the styles of the real ones, and the real ones
that ship with TRL or with the package."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from sdzero.method.thinking import Thinking, thinking_of, thinking_warning
from sdzero.models import load_tokenizer
from sdzero.recipe import ChatSettings
from sdzero.recipe_distill import DistillSettings

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>\n{% endfor %}"
ASKED = "{% if add_generation_prompt %}<|assistant|>"
QWEN3 = (
    TURNS + ASKED + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)
OFF_BY_DEFAULT = (
    TURNS + ASKED + "{% if enable_thinking is defined and enable_thinking %}<think>\n{% else %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
DEEPSEEK_V31 = TURNS + ASKED + "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
R1 = TURNS + ASKED + "<think>\n{% endif %}"
R1_EARLY = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}{% endfor %}"
    + ASKED
    + "{% endif %}"
)
MAGISTRAL = (
    "{% if messages[0].role != 'system' %}[SYSTEM_PROMPT]First draft your thoughts: [THINK]...[/THINK]"
    "[/SYSTEM_PROMPT]{% endif %}" + TURNS + ASKED + "{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.thinking %}<|channel|>analysis<|message|>"
    "{{ m.thinking }}{% endif %}<|channel|>final<|message|>{{ m.content }}<|im_end|>{% endfor %}"
)
SEALED = TURNS + ASKED + "<think>\n\n</think>\n\n{% endif %}"
COMMENT = "{# no <think>, no reasoning_content and no enable_thinking here #}" + TURNS + ASKED + "{% endif %}"


def tokenizer_with(template: str) -> Any:
    tokenizer = load_tokenizer("tiny")
    tokenizer.chat_template = template
    return tokenizer


def seen(template: str, **chat: Any) -> Thinking:
    return thinking_of(tokenizer_with(template), ChatSettings(**chat))


@pytest.mark.parametrize(
    ("template", "kind", "is_on", "switch"),
    [
        (QWEN3, "switchable", True, "enable_thinking"),
        (OFF_BY_DEFAULT, "switchable", False, "enable_thinking"),
        (DEEPSEEK_V31, "switchable", False, "thinking"),
        (R1, "always", True, None),
        (R1_EARLY, "always", True, None),
        (MAGISTRAL, "always", True, None),
        (GPT_OSS, "always", True, None),
        (SEALED, "none", False, None),
        (COMMENT, "none", False, None),
        (TURNS + ASKED + "{% endif %}", "none", False, None),
    ],
)
def test_a_template_tells_whether_the_model_thinks(
    template: str, kind: str, is_on: bool, switch: str | None
) -> None:
    found = seen(template)
    assert (found.kind, found.is_on, found.switch) == (kind, is_on, switch)
    assert bool(found.seen) == (kind != "none" or template == SEALED)


def test_the_recipes_arguments_turn_thinking_off_and_on() -> None:
    assert not seen(QWEN3, template_arguments={"enable_thinking": False}).is_on
    assert seen(QWEN3, template_arguments={"enable_thinking": True}).is_on
    assert seen(OFF_BY_DEFAULT, template_arguments={"enable_thinking": True}).is_on
    assert seen(DEEPSEEK_V31, template_arguments={"thinking": True}).is_on


def test_only_a_mark_that_the_prompt_has_is_certain() -> None:
    assert seen(R1).certain
    assert seen(MAGISTRAL).certain
    assert not seen(R1_EARLY).certain
    assert not seen(GPT_OSS).certain
    plain = TURNS + ASKED + "{% endif %}"
    asked = seen(plain, system_prompt="Think within <think> and </think> first.")
    assert (asked.kind, asked.certain) == ("always", True)


@pytest.mark.parametrize("family", ["qwen3-4b", "olmo3-7b", "llama3"])
def test_our_instruct_architectures_do_not_think(family: str) -> None:
    tokenizer = load_tokenizer(str(Path(str(files("sdzero"))) / "architectures" / family))
    assert thinking_of(tokenizer, ChatSettings()) == Thinking("none")


def test_marks_among_the_added_tokens_alone_are_no_sign() -> None:
    """Qwen3-4B-Instruct-2507 has them, and so has our tokenizer of it."""
    folder = Path(str(files("sdzero"))) / "architectures" / "qwen3-4b"
    tokenizer = load_tokenizer(str(folder))
    assert "<think>" in {token.content for token in tokenizer.added_tokens_decoder.values()}
    assert thinking_of(tokenizer, ChatSettings()).kind == "none"


@pytest.mark.parametrize(
    ("name", "kind", "is_on"),
    [
        ("qwen3", "switchable", True),
        ("qwen3_5_nothink", "switchable", False),
        ("glm4moe", "switchable", True),
        ("nemotron_3_nano", "switchable", True),
        ("gemma4", "switchable", False),
        ("deepseek_r1_distill", "always", True),
        ("gptoss", "always", True),
        ("qwen3_instruct_2507", "none", False),
        ("qwen2_5", "none", False),
        ("llama3_2", "none", False),
        ("phi3_5", "none", False),
        ("gemma3", "none", False),
    ],
)
def test_real_templates_that_ship_with_trl(name: str, kind: str, is_on: bool) -> None:
    template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    found = seen(template)
    assert (found.kind, found.is_on) == (kind, is_on)


def test_the_warning_says_what_why_and_what_to_do() -> None:
    distill = DistillSettings(learning_rate=1e-4, max_new_tokens=8)
    warning = thinking_warning(seen(QWEN3), distill)
    assert warning is not None
    for part in (
        "this is a thinking model (the template reads `enable_thinking`)",
        "limit of SD-Zero",
        "chat.template_arguments={enable_thinking: false}",
        "instruct model",
        "distill.divergence_on",
        "docs/thinking.md",
    ):
        assert part in warning
    unswitchable = thinking_warning(seen(R1), distill)
    assert unswitchable is not None
    assert "template_arguments" not in unswitchable
    assert "may be a thinking model" in (thinking_warning(seen(GPT_OSS), distill) or "")


def test_nothing_is_said_where_there_is_nothing_to_do() -> None:
    distill = DistillSettings(learning_rate=1e-4, max_new_tokens=8)
    assert thinking_warning(seen(OFF_BY_DEFAULT), distill) is None
    assert thinking_warning(seen(COMMENT), distill) is None
    restricted = distill.model_copy(update={"divergence_on": "final_answer"})
    assert thinking_warning(seen(QWEN3), restricted) is None
