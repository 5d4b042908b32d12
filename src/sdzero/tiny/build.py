"""Make an embedded base model from nothing: tokenizer, corpus, pre-training.

    python -m sdzero.tiny.build OUTPUT_FOLDER --world NAME

rebuilds a shipped folder (about 20 minutes on two cores). The steps are the ordinary ones: a byte-level
tokenizer is made (for arithmetic, BPE trained on a sample of the corpus; for the others, single bytes and
the texts that are always the same); a small Llama model with random weights is pre-trained on the corpus,
every token a target; then it is tuned as chat models are, on the attempts only: control phrases are read
but are no targets, so the model that results understands them and hardly ever writes one of its own
accord. Both are saved as transformers saves them.
"""

import argparse
import itertools
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sdzero.tiny.corpus import (
    HINT,
    PHRASE_CORRECT,
    PHRASE_WRONG,
    Document,
    Part,
    documents,
    joined_phrase,
)
from sdzero.tiny.worlds import WORLDS, World

IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
VOCABULARY_SIZE = 384
TOKENIZER_SAMPLE = 4_000
TOKENIZER_SEED = 1
LOG_EVERY = 100
IGNORED = -100
BATCHES_SORTED = 16


def train_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Make the byte-level tokenizer: any text can be encoded, digits stand alone.

    Without fixed texts, merges are learnt from a sample of the corpus. With them, there are no merges: each
    fixed text is one token and any other byte is, so that letters stand alone as well.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=0 if world.fixed_texts else VOCABULARY_SIZE,
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sample = itertools.islice(documents(TOKENIZER_SEED, "pretraining", world), TOKENIZER_SAMPLE)
    pieces = (
        piece
        for document in sample
        for piece in ("user\n", document.problem.text, "assistant\n", *document.pieces)
    )
    tokenizer.train_from_iterator(pieces, trainer)
    if world.fixed_texts:
        tokenizer.add_tokens([AddedToken(text, normalized=False) for text in _fixed_texts(world)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=IM_END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _fixed_texts(world: World) -> list[str]:
    """The texts that get a token each: the chat format's, the phrases, the hint's, the world's own."""
    before_answer = HINT.removeprefix("{question}").partition("{answer}")[0]
    phrases = [joined_phrase(PHRASE_CORRECT), joined_phrase(PHRASE_WRONG)]
    return ["user\n", "assistant\n", *phrases, before_answer, *world.fixed_texts]


def encode_document(
    tokenizer: PreTrainedTokenizerFast, document: Document, part: Part
) -> tuple[list[int], list[int]]:
    """Token ids of a document, piece by piece, as the roles build their sequences; and its labels.

    In pre-training all tokens are targets, in tuning the attempts and the end.
    """
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": document.prompt}],
        add_generation_prompt=True,
        return_dict=False,
    )
    ids, attempts_only = list(prompt), part == "tuning"
    labels = [IGNORED] * len(ids) if attempts_only else list(ids)
    for number, piece in enumerate(document.pieces):
        own = tokenizer.encode(piece, add_special_tokens=False)
        is_phrase = number % 2 == 1
        ids += own
        labels += [IGNORED] * len(own) if attempts_only and is_phrase else own
    return [*ids, tokenizer.eos_token_id], [*labels, tokenizer.eos_token_id]


def batches(
    tokenizer: PreTrainedTokenizerFast, seed: int, batch_size: int, part: Part, world: World
) -> Iterator[list[tuple[list[int], list[int]]]]:
    """An endless stream of batches of documents of similar length, so that little is padded."""
    stream, rng = documents(seed, part, world), random.Random(seed)
    while True:
        some = itertools.islice(stream, batch_size * BATCHES_SORTED)
        rows = [encode_document(tokenizer, document, part) for document in some]
        rows.sort(key=lambda row: len(row[0]))
        starts = list(range(0, len(rows), batch_size))
        rng.shuffle(starts)
        yield from (rows[start : start + batch_size] for start in starts)


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int, hidden: int, layers: int) -> LlamaForCausalLM:
    """A small Llama with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 32,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    corpus_seed: int,
    part: Part,
    world: World,
) -> None:
    """Train by next-token prediction on documents of the corpus, with a cosine schedule."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, weight_decay=0.05, betas=(0.9, 0.98), fused=True
    )
    stream = batches(tokenizer, corpus_seed, batch_size, part, world)
    model.train()
    started, seen = time.monotonic(), 0
    for step in range(steps):
        rows = next(stream)
        ids_BT = pad_sequence(
            [torch.tensor(ids) for ids, _ in rows], batch_first=True, padding_value=tokenizer.pad_token_id
        )
        labels_BT = pad_sequence(
            [torch.tensor(labels) for _, labels in rows], batch_first=True, padding_value=IGNORED
        )
        warmed = min(1.0, (step + 1) / 100)
        rate = learning_rate * warmed * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(input_ids=ids_BT, labels=labels_BT).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += sum(len(ids) for ids, _ in rows)
        if (step + 1) % LOG_EVERY == 0 or step + 1 == steps:
            speed = seen / (time.monotonic() - started)
            print(f"step {step + 1}/{steps}  loss {loss.item():.4f}  {speed:,.0f} tokens/s", flush=True)


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and the text above as it stands."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("output", type=Path, help="folder to save to")
    parser.add_argument("--world", choices=list(WORLDS), default="arithmetic", help="family of questions")
    parser.add_argument("--steps", type=int, help="optimizer steps of pre-training, if not the world's own")
    parser.add_argument("--tuning-steps", type=int, default=800, help="optimizer steps of tuning")
    parser.add_argument("--batch-size", type=int, default=64, help="documents a step")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak rate of pre-training")
    parser.add_argument("--tuning-rate", type=float, default=2e-3, help="peak rate of tuning")
    parser.add_argument("--hidden", type=int, default=128, help="width")
    parser.add_argument("--layers", type=int, default=4, help="layers")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the corpus")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    world = WORLDS[arguments.world]
    tokenizer = train_tokenizer(world)
    model = make_model(tokenizer, arguments.seed, arguments.hidden, arguments.layers)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    train(
        model,
        tokenizer,
        steps=arguments.steps or world.pretraining_steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        corpus_seed=arguments.seed + 100,
        part="pretraining",
        world=world,
    )
    train(
        model,
        tokenizer,
        steps=arguments.tuning_steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.tuning_rate,
        corpus_seed=arguments.seed + 200,
        part="tuning",
        world=world,
    )
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
