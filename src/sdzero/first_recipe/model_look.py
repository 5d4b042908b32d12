"""What a model's folder says of itself: configuration, weights, tokenizer, chat template. Imports no torch.

transformers would import torch, so the files are read as they are; `sdzero doctor` then loads the tokenizer
as a run does.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.method.thinking import Thinking, thinking_of
from sdzero.recipe import ChatSettings
from sdzero.safetensors_header import numbers_by_type

_GENERATION_MARKS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Tags by which a template says what the assistant wrote; only transformers knows them."""
CHARACTERS_A_TOKEN = 3.0
"""Where the tokenizer cannot count: fewer than English text has, so that lengths are over-estimated."""


class ChatTemplate:
    """A chat template as far as prompts need it: it stands in for a tokenizer where one is asked for text."""

    def __init__(self, source: str, special: Mapping[str, str]) -> None:
        self._source = source
        self._special = dict(special)
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.filters["tojson"] = lambda value, **kw: json.dumps(value, ensure_ascii=False, **kw)
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._template = environment.from_string(_GENERATION_MARKS.sub("", source))

    def get_chat_template(self) -> str:
        """The template's text."""
        return self._source

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool = False,
        tokenize: bool = False,
        **more: Any,
    ) -> str:
        """The conversation as text. Raises jinja2's TemplateError if the template refuses it."""
        assert not tokenize, "it has no vocabulary"
        return self._template.render(
            messages=messages, add_generation_prompt=add_generation_prompt, **self._special, **more
        )


def _refuse(message: str) -> str:
    raise TemplateError(message)


@dataclass(frozen=True)
class ModelLook:
    """What was found. `context` in tokens; None where the files do not say."""

    path: str
    folder: Path
    architecture: str
    context: int | None
    parameters: int
    dtype: str
    template: ChatTemplate
    thinking: Thinking
    counts_tokens: bool

    @property
    def size(self) -> str:
        """The number of parameters for people."""
        if self.parameters >= 1_000_000_000:
            return f"{self.parameters / 1e9:.1f}B parameters"
        return f"{self.parameters / 1e6:.1f}M parameters"

    def prompt_lengths(self, texts: Sequence[str], chat: ChatSettings) -> list[int]:
        """How many tokens the prompts of these questions have; estimated where there is no tokenizer.json."""
        prompts = [
            self.template.apply_chat_template(
                chat.messages(chat.user_turn(text)), add_generation_prompt=True, **chat.template_arguments
            )
            for text in texts
        ]
        if not self.counts_tokens:
            return [int(len(prompt) / CHARACTERS_A_TOKEN) + 1 for prompt in prompts]
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        encoded = tokenizer.encode_batch(prompts, add_special_tokens=False)
        return [len(one.ids) for one in encoded]


def look_at_model(path: str) -> ModelLook:
    """Look at a model's folder (or `tiny`, an embedded one).

    Raises UserError for a folder that a run could not use: no configuration, no weights, no chat template.
    """
    folder = _folder_of(path)
    config = _json_object(folder / "config.json")
    inner = config.get("text_config")
    text_config: dict[str, Any] = inner if isinstance(inner, dict) else config
    parameters, dtype = weights_of(folder)
    settings = _json_object(folder / "tokenizer_config.json")
    template = _template_of(folder, settings)
    context = text_config.get("max_position_embeddings")
    try:
        thinking = thinking_of(template, ChatSettings())  # type: ignore[arg-type]
    except TemplateError as error:
        raise UserError(
            f"the chat template cannot be used: {error}",
            str(folder),
            "mend chat_template.jinja in the model's folder",
        ) from error
    return ModelLook(
        path=path,
        folder=folder,
        architecture=str((config.get("architectures") or [config.get("model_type", "unknown")])[0]),
        context=context if isinstance(context, int) else None,
        parameters=parameters,
        dtype=dtype,
        template=template,
        thinking=thinking,
        counts_tokens=(folder / "tokenizer.json").is_file(),
    )


def _folder_of(path: str) -> Path:
    world = tiny.world_of_model(path)
    if world is not None and world in tiny.MODEL_FOLDERS:
        return tiny.model_folder(world)
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise UserError(
            "there is no model folder here",
            path,
            "download the model and name its folder: init looks at files, and uses no network",
        )
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise UserError(
            "this folder holds an adapter, not a model",
            str(folder),
            "name the folder of the adapter's base model, or merge the adapter first",
        )
    if not (folder / "config.json").is_file():
        raise UserError(
            "the model folder has no config.json",
            str(folder),
            "name a folder that save_pretrained wrote, or a downloaded snapshot",
        )
    return folder


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"the model's folder has no {file.name}", str(file.parent), "copy the whole folder again"
        ) from None
    except ValueError as error:
        raise UserError(f"the file is not JSON: {error}", str(file), "copy it again") from None
    if not isinstance(value, dict):
        raise UserError("the file holds no JSON object", str(file), "copy it again")
    return value


def weights_of(folder: Path) -> tuple[int, str]:
    """How many numbers the weights have, and the type that most of them have, from the files' headers.

    Raises UserError if there are no safetensors, or one is damaged.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(
            "the model's folder has no *.safetensors", str(folder), "copy the weights, or convert them"
        )
    types = numbers_by_type(files)
    return types.total(), types.most_common(1)[0][0] if types else "F32"


def _template_of(folder: Path, settings: Mapping[str, Any]) -> ChatTemplate:
    file = folder / "chat_template.jinja"
    source: Any = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    if isinstance(source, list):  # several, by name
        named = {one.get("name"): one.get("template") for one in source if isinstance(one, dict)}
        source = named.get("default")
    if not isinstance(source, str) or not source.strip():
        raise UserError(
            "the model has no chat template",
            str(folder),
            "use an instruction-tuned checkpoint, or put a chat_template.jinja into its folder",
        )
    special = {}
    for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            special[key] = value
    try:
        return ChatTemplate(source, special)
    except TemplateError as error:
        raise UserError(f"the chat template is not well-formed: {error}", str(folder), "mend it") from error
