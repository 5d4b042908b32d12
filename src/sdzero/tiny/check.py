"""Measure an embedded base model: how often it is right, kind by kind, on its own side of the split.

    python -m sdzero.tiny.check FOLDER --world NAME

Problems are drawn from the pre-training side, so nothing that is measured here touches a question of a run.
Responses are sampled; the figures to compare them with are the shares of the corpus. Columns, in per cent:
the first attempt is right, follows the misconception, does neither; the attempt after a misconception and
its phrase is right; the attempt after a right one and its phrase is right; the first attempt is right with
the reference answer shown below the question (for a world whose corpus has that).
"""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sdzero.tiny.corpus import PHRASE_CORRECT, PHRASE_WRONG, joined_phrase, with_hint
from sdzero.tiny.problem import Problem, is_pretraining
from sdzero.tiny.worlds import WORLDS, World

COLUMNS = ("right", "misconception", "neither", "mended", "kept", "hinted")
MAX_NEW_TOKENS = 112
BATCH_SIZE = 250


class Sampler:
    """A base model that continues exchanges."""

    def __init__(self, folder: Path, temperature: float) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForCausalLM.from_pretrained(folder).eval()  # type: ignore[no-untyped-call]
        self._temperature = temperature

    def _prefix(self, question: str, pieces: Sequence[str]) -> list[int]:
        ids = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for piece in pieces:
            ids = ids + self._tokenizer.encode(piece, add_special_tokens=False)
        return list(ids)

    def continue_all(self, exchanges: Sequence[tuple[str, tuple[str, ...]]]) -> list[str]:
        """One sampled continuation of each (question, pieces so far)."""
        texts = []
        for start in range(0, len(exchanges), BATCH_SIZE):
            rows = [self._prefix(*exchange) for exchange in exchanges[start : start + BATCH_SIZE]]
            width = max(map(len, rows))
            pad = self._tokenizer.pad_token_id
            ids_BT = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
            with torch.inference_mode():
                out_BT = self._model.generate(
                    input_ids=ids_BT,
                    attention_mask=(ids_BT != pad).long(),
                    do_sample=True,
                    temperature=self._temperature,
                    top_k=0,
                    max_new_tokens=MAX_NEW_TOKENS,
                    pad_token_id=pad,
                )
            texts += self._tokenizer.batch_decode(out_BT[:, width:], skip_special_tokens=True)
        return texts


def drawn(world: World, kind: str, count: int, rng: random.Random) -> list[Problem]:
    """Problems of a kind from the pre-training side; some may come twice."""
    found: list[Problem] = []
    while len(found) < count:
        problem = world.draw_problem(rng, kind)
        if is_pretraining(problem.text):
            found.append(problem)
    return found


def measure(sampler: Sampler, world: World, kind: str, count: int, rng: random.Random) -> dict[str, float]:
    """Shares in [0, 1] by column, over `count` problems of one kind."""
    problems = drawn(world, kind, count, rng)

    def share_right(exchanges: list[tuple[str, tuple[str, ...]]]) -> float:
        texts = sampler.continue_all(exchanges)
        rights = [world.is_right(problem, text) for problem, text in zip(problems, texts, strict=True)]
        return sum(rights) / count

    first = sampler.continue_all([(problem.text, ()) for problem in problems])
    pairs = list(zip(problems, first, strict=True))
    right = sum(world.is_right(problem, text) for problem, text in pairs)
    fallen = sum(
        world.outcome(text) == world.outcome(world.solution(problem, False, False)) for problem, text in pairs
    )
    after_wrong, after_right = joined_phrase(PHRASE_WRONG), joined_phrase(PHRASE_CORRECT)
    shares = {
        "right": right / count,
        "misconception": fallen / count,
        "neither": (count - right - fallen) / count,
        "mended": share_right([(p.text, (world.solution(p, False, False), after_wrong)) for p in problems]),
        "kept": share_right([(p.text, (world.solution(p, True, False), after_right)) for p in problems]),
    }
    if world.hint_share:
        shares["hinted"] = share_right([(with_hint(problem), ()) for problem in problems])
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the base model")
    parser.add_argument("--world", choices=list(WORLDS), default="arithmetic", help="its family")
    parser.add_argument("--problems", type=int, default=500, help="of each kind (default: 500)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of sampling (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of problems and samples (default: 0)")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    world, rng = WORLDS[arguments.world], random.Random(arguments.seed)
    sampler = Sampler(arguments.folder, arguments.temperature)
    print(f"{'kind':26}{'corpus':>8}" + "".join(f"{column:>15}" for column in COLUMNS))
    for kind, corpus_share in world.share_right.items():
        shares = measure(sampler, world, kind, arguments.problems, rng)
        cells = (f"{100 * shares[column]:15.1f}" if column in shares else f"{'-':>15}" for column in COLUMNS)
        print(f"{kind:26}{100 * corpus_share:8.0f}{''.join(cells)}", flush=True)


if __name__ == "__main__":
    main()
