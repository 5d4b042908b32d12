"""The models that speed and memory are measured on, and what they read.

Random weights, float32 on a CPU: how long a product of matrices takes does not depend on what is in them.
A random model does not end its responses (about one in `vocabulary / response_tokens` does), so all have
the length that the shape names, in our trainer and in a peer's. `tiny` is the embedded model, trained, with
responses of mixed lengths.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from floor import Sizes, sizes_of
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen3Config,
)

from sdzero import tiny
from sdzero.method.roles import Roles
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings

PROMPT_TOKENS = (32, 64)
"""The shortest and the longest prompt of a batch, about."""
NEVER_RIGHT = "-31415926535"
"""The reference answer of every question, so that every response is wrong, and gets the same phrase."""


@dataclass(frozen=True)
class Shape:
    """A model's size, and a batch: `batch` questions with responses of `response_tokens` at most."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    response_tokens: int
    batch: int = 8

    @property
    def inner(self) -> int:
        """The width within a layer's gated part."""
        return 3 * self.width


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 4, 128, 4, 352, 64),
        Shape("24m", 6, 384, 6, 32_768, 128),
        Shape("70m", 6, 384, 6, 151_936, 256),
        Shape("100m", 12, 704, 11, 32_768, 128),
    )
}
"""24m and 70m differ in the vocabulary; 100m has the small one, and more layers."""


def config_of(shape: Shape, family: type[PreTrainedConfig] = Qwen3Config) -> Any:
    """The architecture of Qwen3, or of another family, at this size, embeddings tied as in small models."""
    return family(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=16_384,
        tie_word_embeddings=True,
        bos_token_id=None,
    )


def sizes_at(shape: Shape) -> Sizes:
    """What the floor is counted from."""
    return sizes_of(
        AutoConfig.from_pretrained(tiny.model_folder()) if shape.name == "tiny" else config_of(shape)
    )


def make_folder(shape: Shape, folder: Path, family: type[PreTrainedConfig] = Qwen3Config) -> Path:
    """A model folder of this shape: random weights and a small tokenizer, or the embedded model's own."""
    if shape.name == "tiny":
        return tiny.model_folder()
    tokenizer = AutoTokenizer.from_pretrained(Path(str(files("sdzero"))) / "architectures" / "qwen3-4b")
    config = config_of(shape, family)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def roles_of(tokenizer: PreTrainedTokenizerBase) -> Roles:
    """Who builds the prompts: plain settings, no answer instruction."""
    return Roles(tokenizer, PhraseSettings(), ChatSettings())


def questions_of(shape: Shape, roles: Roles) -> list[Question]:
    """A batch of questions whose prompts have about 32 to 64 tokens, evenly spread."""
    shortest, longest = PROMPT_TOKENS
    spread = max(shape.batch - 1, 1)
    questions = []
    for number in range(shape.batch):
        wanted, terms = shortest + (longest - shortest) * number // spread, [str(number + 1)]
        while len(roles.generator_prompt(_question(number, terms))) < wanted:
            terms.append(str(len(terms) % 9 + 1))
        questions.append(_question(number, terms))
    return questions


def _question(number: int, terms: list[str]) -> Question:
    return Question(f"q{number}", "+".join(terms), NEVER_RIGHT)


def recorded_responses(
    shape: Shape, roles: Roles, questions: list[Question]
) -> dict[tuple[int, ...], list[int]]:
    """By prompt, a response of random tokens without an end, of the length of the shape."""
    generator = torch.Generator().manual_seed(1)
    end = roles.end_token_id
    found = {}
    for question in questions:
        ids = torch.randint(end + 1, shape.vocabulary, (shape.response_tokens,), generator=generator)
        found[tuple(roles.generator_prompt(question))] = ids.tolist()
    return found
