"""Show what is trained on: token sequences, their loss masks, and the alignment of phase 2."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from sdzero.errors import UserError
from sdzero.harmless import harmless
from sdzero.method.objectives import phrase_reward
from sdzero.method.roles import DistillationPair, Roles, WeightedSequence
from sdzero.method.srt import srt_rows
from sdzero.method.trace import RevisionTrace
from sdzero.models import load_tokenizer
from sdzero.offline import kept_in
from sdzero.questions.sources import load_questions
from sdzero.run_dir import RunDir, recipe_of_run
from sdzero.verify.verdict import Outcome, Verdict

STYLES = {0.0: "dim", 1.0: "green", 2.0: "bold green reverse"}
OTHER_STYLE = "yellow"


def masked_text(ids: tuple[int, ...], weights: tuple[float, ...], tokenizer: PreTrainedTokenizerBase) -> Text:
    """Tokens coloured by their weight in the loss: dim for none, green for one, reverse for two."""
    text = Text()
    for token, weight in zip(ids, weights, strict=True):
        shown = harmless(str(tokenizer.decode([token])))
        text.append(shown, style=STYLES.get(weight, OTHER_STYLE))
        text.append("\u2502", style="dim")
    return text


def print_sequence(sequence: WeightedSequence, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """One training sequence: its parts with token ids and weights, then its text in colour."""
    for name, start, end in sequence.segments:
        weights = sorted(set(sequence.weights[start:end]))
        ids = " ".join(map(str, sequence.token_ids[start:end]))
        console.print(f"  {name:14s} tokens {start}-{end - 1}, weight {weights}: {ids}", highlight=False)
    console.print(masked_text(sequence.token_ids, sequence.weights, tokenizer))


def print_pair(pair: DistillationPair, tokenizer: PreTrainedTokenizerBase, console: Console) -> None:
    """Student and teacher sequences of phase 2; the targets are what the divergence covers."""
    for name, ids, positions in (
        ("student", pair.student_ids, pair.student_logit_positions),
        ("teacher", pair.teacher_ids, pair.teacher_logit_positions),
    ):
        targets = {position + 1 for position in positions}
        weights = tuple(1.0 if index in targets else 0.0 for index in range(len(ids)))
        console.print(
            f"  {name}: {len(ids)} tokens, logits at {positions[0]}-{positions[-1]}", highlight=False
        )
        console.print(masked_text(ids, weights, tokenizer))


@dataclass(frozen=True)
class Example:
    """A sequence that a run trains on, or the two of phase 2, and where it comes from."""

    stage: str
    reward: int
    sequence: WeightedSequence | DistillationPair


def inspect_run(folder: Path, count: int, console: Console) -> None:
    """Print examples of every kind that the run has. Raises UserError if the folder is not a run."""
    tokenizer, examples = _examples(folder, count)
    for example in examples:
        console.print(f"[bold]{example.stage}, r = {example.reward}[/bold]", highlight=False)
        if isinstance(example.sequence, WeightedSequence):
            print_sequence(example.sequence, tokenizer, console)
        else:
            print_pair(example.sequence, tokenizer, console)


def sequences_as_json(folder: Path, count: int) -> list[dict[str, Any]]:
    """The same examples as JSON-like values: every field of the sequence, and its text."""
    tokenizer, examples = _examples(folder, count)
    found = []
    for example in examples:
        own = example.sequence
        ids = own.token_ids if isinstance(own, WeightedSequence) else own.teacher_ids
        found.append(
            {
                "stage": example.stage,
                "reward": example.reward,
                "text": str(tokenizer.decode(list(ids))),
                **asdict(own),
            }
        )
    return found


def _examples(folder: Path, count: int) -> tuple[PreTrainedTokenizerBase, list[Example]]:
    """Examples of every kind. Raises UserError if the folder is not a run, or has none yet."""
    recipe = recipe_of_run(folder)
    run = RunDir.unlocked(folder)
    questions = {}
    with kept_in(recipe):
        tokenizer = load_tokenizer(recipe.model.path)
        if (folder / "distill/rollouts").exists():
            found = load_questions(recipe.data, empty_answers=recipe.labels.is_majority)
            questions = {question.id: question for question in found}
    roles = Roles(tokenizer, recipe.phrases, recipe.chat)
    examples: list[Example] = []
    for traces_file in sorted(folder.glob("collect/round-*/traces.jsonl")):
        rows = run.read_jsonl(str(traces_file.relative_to(folder)))
        traces = [RevisionTrace.from_json(row) for row in rows]
        for reward in (0, 1):
            chosen = [trace for trace in traces if trace.reward == reward][:count]
            for stage, sequences in enumerate(srt_rows(chosen, roles, recipe.srt) if chosen else []):
                name = f"{traces_file.parent.name}, SRT stage {stage + 1}"
                examples += [Example(name, reward, sequence) for sequence in sequences]
    for rollouts_file in sorted(folder.glob("distill/rollouts/*.jsonl"))[:1]:
        for row in run.read_jsonl(str(rollouts_file.relative_to(folder)))[:count]:
            prompt = roles.generator_prompt(questions[row["question"]])
            reward = Verdict(Outcome(row["outcome"])).reward
            pair = roles.distillation_pair(
                prompt, row["token_ids"], phrase_reward(reward, recipe.distill.phrase_for_reward)
            )
            examples.append(Example(f"phase 2, {rollouts_file.stem}", reward, pair))
    if not examples:
        raise UserError("the run has no traces or rollouts yet", str(folder), "run `sdzero collect` first")
    return tokenizer, examples
