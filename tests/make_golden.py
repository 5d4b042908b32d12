"""Regenerate the small tokenizers and the golden token sequences.

    python tests/make_golden.py

A tokenizer here has the chat template, the special tokens and the way of splitting text of its family,
and a small byte-level BPE vocabulary, trained on the sentences below. It goes to
`src/sdzero/architectures/<family>/`, the golden sequences to `tests/golden/<family>.json`. The outcome
is the same on every machine. Look at the difference before committing it: a golden sequence changes only
when what the model reads is meant to change.
"""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sdzero.method.roles import Roles, WeightedSequence
from sdzero.questions.question import Question
from sdzero.recipe import ChatSettings, PhraseSettings

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURES = ROOT / "src" / "sdzero" / "architectures"
GOLDEN = ROOT / "tests" / "golden"

VOCABULARY_SIZE = 512
SENTENCES = [
    "Please reason step by step, and put your final answer within \\boxed{}.",
    "Let me rephrase the above solution.",
    "Wait, this response is not correct, let me start over.",
    "Wait, this response is wrong. Let me correct it.",
    "You are a helpful assistant. You do not currently have access to any functions.",
    "system\nuser\nassistant\n\n",
    "The workshop made 48 lamps in spring, and then it made half as many in summer.\n\n",
    "How many lamps did it make in all? In summer it made 48 / 2 = 24 lamps, so 48 + 24 = 72.\n",
    "The answer is \\boxed{72}. Hence $x = \\frac{3}{4}$, and the sum of the roots is $-b/a$.",
    "Therefore the number of ways is 12 * 11 * 10 / 6 = 220, which we can check by counting.",
]

# How the three families split text before merging (their published tokenizer.json files).
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SINGLE_DIGITS = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST
THREE_DIGITS = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST


@dataclass(frozen=True)
class Family:
    """What sets a family's tokenizer apart. `template` names a file of TRL; None: it stands in the folder."""

    split: str
    special_tokens: tuple[str, ...]
    end_of_text: str
    pad: str
    template: str | None
    begin: str | None = None
    plain_tokens: tuple[str, ...] = ()
    normalize: bool = False


FAMILIES = {
    "qwen3-4b": Family(
        split=SINGLE_DIGITS,
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        plain_tokens=("<tool_call>", "</tool_call>", "<think>", "</think>"),
        end_of_text="<|im_end|>",
        pad="<|endoftext|>",
        template="qwen3_instruct_2507.jinja",
        normalize=True,
    ),
    "llama3": Family(
        split=THREE_DIGITS,
        special_tokens=(
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
        ),
        end_of_text="<|eot_id|>",
        pad="<|end_of_text|>",
        template="llama3.jinja",
        begin="<|begin_of_text|>",
    ),
    "olmo3-7b": Family(
        split=THREE_DIGITS,
        special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"),
        plain_tokens=("<functions>", "</functions>", "<function_calls>", "</function_calls>"),
        end_of_text="<|endoftext|>",
        pad="<|pad|>",
        template=None,
    ),
}


def chat_template(name: str) -> str:
    """The family's chat template, from TRL's folder where it ships there."""
    file_name = FAMILIES[name].template
    if file_name is None:
        return (ARCHITECTURES / name / "chat_template.jinja").read_text(encoding="utf-8")
    trl = importlib.util.find_spec("trl")
    assert trl is not None
    assert trl.origin is not None
    return (Path(trl.origin).parent / "chat_templates" / file_name).read_text(encoding="utf-8")


def make_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Train one family's small tokenizer."""
    family = FAMILIES[name]
    tokenizer = Tokenizer(models.BPE())
    if family.normalize:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(family.split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY_SIZE - len(family.special_tokens) - len(family.plain_tokens),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in family.special_tokens])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in family.plain_tokens])
    if family.begin is not None:
        # As Llama 3 has it: text that is encoded by itself gets a begin token, so the template's own
        # must not be joined by a second.
        begin_id = tokenizer.token_to_id(family.begin)
        tokenizer.post_processor = Sequence(
            [
                ByteLevel(trim_offsets=False),
                TemplateProcessing(single=f"{family.begin} $A", special_tokens=[(family.begin, begin_id)]),
            ]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.begin,
        eos_token=family.end_of_text,
        pad_token=family.pad,
        chat_template=chat_template(name),
        clean_up_tokenization_spaces=False,
    )


QUESTION = Question(
    id="lamps",
    text="A workshop made 48 lamps in spring, and half as many in summer. How many in all?",
    answer="72",
)
PLAIN = ChatSettings()
INSTRUCTED = ChatSettings(
    system_prompt="You are a careful solver.",
    answer_instruction="Please reason step by step, and put your final answer within \\boxed{}.",
)
INITIAL = "It made 48 + 48 = 96 lamps.\n\n\\boxed{96}"
REVISED = "In summer it made 48 / 2 = 24, so 72 in all.\n\n\\boxed{72}"


def make_golden(name: str, tokenizer: Any) -> dict[str, Any]:
    """Every kind of sequence of one family, as JSON data."""
    roles = Roles(tokenizer, PhraseSettings(), PLAIN)
    instructed = Roles(tokenizer, PhraseSettings(), INSTRUCTED)
    prompt = roles.generator_prompt(QUESTION)
    initial, revised = (
        [*tokenizer.encode(text, add_special_tokens=False), roles.end_token_id] for text in (INITIAL, REVISED)
    )

    def sequence(ids: list[int] | tuple[int, ...]) -> dict[str, Any]:
        return {"ids": list(ids), "text": [tokenizer.decode([token_id]) for token_id in ids]}

    def weighted(built: WeightedSequence) -> dict[str, Any]:
        segments = [list(segment) for segment in built.segments]
        return {**sequence(built.token_ids), "weights": list(built.weights), "segments": segments}

    def pair(response: list[int], reward: int) -> dict[str, Any]:
        built = roles.distillation_pair(prompt, response, reward)
        return {
            "student": sequence(built.student_ids),
            "teacher": sequence(built.teacher_ids),
            "targets": list(built.targets),
            "student_logit_positions": list(built.student_logit_positions),
            "teacher_logit_positions": list(built.teacher_logit_positions),
        }

    return {
        "family": name,
        "end_token": tokenizer.convert_ids_to_tokens(roles.end_token_id),
        "responses": {"initial": initial, "revised": revised},
        "generator_prompt": sequence(prompt),
        "generator_prompt_with_system_and_instruction": sequence(instructed.generator_prompt(QUESTION)),
        "reviser_prompt_reward_0": sequence(roles.reviser_prompt(prompt, initial, 0)),
        "reviser_prompt_reward_1": sequence(roles.reviser_prompt(prompt, revised, 1)),
        "joint_sequence": weighted(roles.joint_sequence(prompt, initial, 0, revised)),
        "distillation_pair_reward_0": pair(initial, 0),
        "distillation_pair_reward_1": pair(revised, 1),
        "distillation_pair_cut": pair(initial[:-3], 0),
    }


def to_text(data: Any, indent: int = 0) -> str:
    """JSON with one line a list of numbers or strings, so that differences can be read."""
    if not isinstance(data, dict):
        return json.dumps(data, ensure_ascii=False)
    margin = " " * (indent + 1)
    rows = [f"{margin}{json.dumps(key)}: {to_text(value, indent + 1)}" for key, value in data.items()]
    return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"


def main() -> None:
    for name in FAMILIES:
        tokenizer = make_tokenizer(name)
        tokenizer.save_pretrained(ARCHITECTURES / name)
        text = to_text(make_golden(name, tokenizer)) + "\n"
        (GOLDEN / f"{name}.json").write_text(text, encoding="utf-8")
        print(name, len(tokenizer), "tokens")


if __name__ == "__main__":
    main()
