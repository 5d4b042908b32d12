"""Try a recipe out without its model or data: one step of each stage, on two questions.

What is substituted is said, line by line: the model (a small random one of the same architecture, with
the real tokenizer where the model is a local folder), the questions (two rows in the data's schema),
the lengths and the counts, the end of responses (a random model hardly ever ends one) and the rewards
(a random model is hardly ever right). Everything else, templates, phrases, losses, optimizer,
divergence and file formats, is what the recipe says; the verifier is started, in its sandbox if it has one,
and grades its canaries. Nothing is written outside the folder.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, set_seed

from sdzero import ranks, tiny
from sdzero.engines import EngineMaker
from sdzero.errors import UserError
from sdzero.method.roles import Roles
from sdzero.models import DTYPES, load_tokenizer, resolve_path, save_model
from sdzero.pipeline import open_run
from sdzero.questions.question import Question
from sdzero.questions.sources import load_questions
from sdzero.recipe import BUILT_IN, CODE_SOURCES, BudgetSettings, FieldMap, Recipe
from sdzero.recipe_rollout import RolloutSettings
from sdzero.rollout.engine import Request, Response, RolloutEngine, Sampling
from sdzero.verify.verdict import Outcome, Verdict

KNOWN_ARCHITECTURES = {
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3-4b",
    "allenai/Olmo-3-7B-Instruct": "olmo3-7b",
}
"""Models whose configuration and chat template ship with the package, for dry runs."""

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
NEW_TOKENS = 8
QUESTIONS = 2


class EndingEngine:
    """Closes each response that the length limit cut with the end token, as a trained model would."""

    def __init__(self, engine: RolloutEngine, end_token_id: int) -> None:
        self._engine = engine
        self._end_token_id = end_token_id

    @property
    def weight_version(self) -> int:
        """That of the engine inside."""
        return self._engine.weight_version

    @property
    def max_context(self) -> int | None:
        """That of the engine inside."""
        return self._engine.max_context

    @property
    def samples_elsewhere(self) -> bool:
        """As the engine inside does."""
        return self._engine.samples_elsewhere

    def read_weights(self) -> None:
        """As the engine inside does."""
        self._engine.read_weights()

    def take_weights(self, model: PreTrainedModel, steps: int = 1) -> None:
        """Hand on to the engine inside."""
        self._engine.take_weights(model, steps)

    def rest(self) -> None:
        """Hand on to the engine inside."""
        self._engine.rest()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Response]:
        """Sample, and end what did not end."""
        return [
            response
            if response.stop_reason == "end"
            else Response((*response.token_ids, self._end_token_id), "end", response.weight_version)
            for response in self._engine.generate(requests, sampling)
        ]


def architecture_folder(model_path: str) -> Path:
    """Where the configuration and tokenizer of a recipe's model are found without the model itself."""
    if model_path in KNOWN_ARCHITECTURES:
        return Path(str(files("sdzero"))) / "architectures" / KNOWN_ARCHITECTURES[model_path]
    if tiny.world_of_model(model_path) is not None or Path(model_path).is_dir():
        return Path(resolve_path(model_path))
    raise UserError(
        f"a dry run does not know the architecture of {model_path}",
        "model.path",
        "name a local folder, or one of " + ", ".join(KNOWN_ARCHITECTURES),
    )


def small_config(config: Any, vocabulary: int) -> Any:
    """The same architecture, small: the ratio of key heads and the kinds of layers are kept."""
    heads = 4
    ratio = max(1, config.num_attention_heads // config.num_key_value_heads)
    values = dict(SMALL)
    values["num_hidden_layers"] = min(SMALL["num_hidden_layers"], config.num_hidden_layers)
    values |= {
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // ratio),
        "head_dim": SMALL["hidden_size"] // heads,
        "vocab_size": vocabulary,
    }
    fields = config.to_dict() | values
    if fields.get("layer_types"):
        fields["layer_types"] = fields["layer_types"][: values["num_hidden_layers"]]
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields[key] = None  # those of the real vocabulary mean nothing in the small one
    return type(config).from_dict(fields)


def make_small_model(recipe: Recipe, folder: Path) -> int:
    """Save a small random model of the recipe's architecture; returns its number of parameters."""
    source = architecture_folder(recipe.model.path)
    tokenizer = load_tokenizer(str(source))
    config = small_config(AutoConfig.from_pretrained(source), len(tokenizer))
    set_seed(recipe.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=DTYPES[recipe.model.dtype]
    )
    save_model(model, tokenizer, folder)
    return model.num_parameters()


def two_rows(recipe: Recipe) -> tuple[list[dict[str, Any]], FieldMap]:
    """Two rows in the schema of the recipe's data, and which column holds what.

    A code data set has rows of its own, written for sdzero; a family that the package makes itself gives two
    of its questions; any other source gives two problems under the recipe's own column names.
    """
    kept = Path(str(files("sdzero"))) / "architectures"
    fields = recipe.data.fields.model_copy(
        update={"id": None, "kind": None, "solution": None, "metadata": []}
    )
    if recipe.data.source in CODE_SOURCES:
        return _json_lines(kept / "rows" / f"{recipe.data.source}.jsonl")[:QUESTIONS], fields
    if recipe.data.source in BUILT_IN:
        questions = load_questions(recipe.data)[:QUESTIONS]
        metadata = sorted(questions[0].metadata)
        rows = [
            {"question": one.text, "answer": one.answer, **{key: one.metadata[key] for key in metadata}}
            for one in questions
        ]
        return rows, FieldMap(metadata=metadata)
    problems = _json_lines(kept / "qwen3-4b" / "rows.jsonl")[:QUESTIONS]
    return [{fields.question: row["problem"], fields.answer: row["answer"]} for row in problems], fields


def _json_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_rows(recipe: Recipe, rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Write the rows where the small recipe reads them; returns the keys of `data` that say so."""
    if recipe.data.source in CODE_SOURCES:
        import datasets

        datasets.disable_progress_bars()
        # A saved data set is read where it lies; a single file would first be copied to the user's cache.
        datasets.Dataset.from_list(list(rows)).save_to_disk(str(folder / "rows"))
        return {"path": str(folder / "rows")}
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "jsonl", "path": str(folder / "rows.jsonl")}


def small_recipe(recipe: Recipe, folder: Path, data: dict[str, Any]) -> Recipe:
    """The recipe with its sizes brought down to one step of each stage on two questions.

    `data` are the keys that say where the questions are.
    """

    def one_step(settings: Any, **more: Any) -> Any:
        return settings.model_copy(
            update={"batch_size": QUESTIONS, "micro_batch_size": 1, "epochs": 1, "checkpoint_every": 1} | more
        )

    sampling = {"max_new_tokens": NEW_TOKENS, "batch_size": 64}
    return recipe.model_copy(
        update={
            "model": recipe.model.model_copy(
                update={"path": str(folder / "model"), "device": "cpu", "attention": "sdpa"}
            ),
            "data": recipe.data.model_copy(
                update=data
                | {
                    "subset": None,
                    "tasks": [],
                    "task_arguments": {},
                    "n1": QUESTIONS,
                    "n2": QUESTIONS,
                    "tuning": 0,
                    "test": QUESTIONS,
                }
            ),
            "rollout": RolloutSettings(batch_size=recipe.rollout.batch_size),
            "collect": recipe.collect.model_copy(
                update=sampling
                | {
                    "rounds": 1,
                    "initial_per_question": 1,
                    "revisions_per_initial": 1,
                    "target_traces": QUESTIONS,
                }
            ),
            "srt": one_step(recipe.srt, checkpoint=None),
            "distill": one_step(
                recipe.distill,
                max_new_tokens=NEW_TOKENS,
                evaluate_every=None,
                early_stop_patience=None,
                teacher=None,
                teacher_placement="device",
                rehearsal_traces=None,
                rehearsal_batch_size=QUESTIONS,
            ),
            "rft": one_step(recipe.rft),
            "labels": recipe.labels.model_copy(update={"source": "reference"}),
            "budget": BudgetSettings(),
            "evaluate": recipe.evaluate.model_copy(update=sampling | {"k": 1}),
            "suite": recipe.suite.model_copy(update={"name": None}),
            "report_to": [],
        }
    )


def substituted_rewards(items: Sequence[tuple[Question, str]]) -> list[Verdict]:
    """Every other response is called right, so that both control phrases are used."""
    return [Verdict(Outcome.WRONG if index % 2 else Outcome.CORRECT) for index in range(len(items))]


def _where_graded(recipe: Recipe) -> str:
    return f", in the sandbox `{recipe.verifier.sandbox.backend}`" if recipe.verifier.name == "code" else ""


def _prepare(recipe: Recipe, folder: Path) -> tuple[int, dict[str, Any], int]:
    """Empty the folder and put model and data there; the model's size, the settings of the data, its rows."""
    if folder.exists():
        if not folder.is_dir():
            raise UserError("this is a file, not a folder", str(folder), "choose another --output")
        if not (folder / "DRY_RUN").is_file() and any(folder.iterdir()):
            raise UserError(
                "the folder is not empty and not from a dry run", str(folder), "choose another one"
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "DRY_RUN").write_text("A dry run wrote this folder; the next one empties it.\n")
    parameters = make_small_model(recipe, folder / "model")
    rows, fields = two_rows(recipe)
    return parameters, {"fields": fields, **write_rows(recipe, rows, folder)}, len(rows)


def dry_run(
    recipe: Recipe, folder: Path, report: Callable[[str], None], progress: Callable[[str, int, int], None]
) -> dict[str, Any]:
    """Take one step of each stage; raises what the real run would raise. Returns the results."""
    with ranks.turn_of_first() as is_mine:
        own = _prepare(recipe, folder) if is_mine else None
    of_first = ranks.gather(own)[0]
    assert of_first is not None
    parameters, changes, row_count = of_first
    small = small_recipe(recipe, folder, changes)
    report(f"dry run of {recipe.name}. Substituted:")
    report(
        f"  model {recipe.model.path} -> random weights, same architecture, {parameters:,} parameters,"
        " on the CPU"
    )
    report(
        f"  data {recipe.data.path or recipe.data.source} -> {row_count} rows in its schema,"
        " the same in every set"
    )
    report(f"  responses of {recipe.distill.max_new_tokens} tokens -> {NEW_TOKENS}, ended by force")
    report(
        f"  rewards of the verifier `{recipe.verifier.name}` -> every other response is called right (its"
        f" canaries are graded{_where_graded(recipe)})"
    )
    if recipe.labels.is_majority:
        report("  labels of a vote -> the rows' answers: responses of a random model have none to agree on")
    report("  sizes: one optimizer step a stage, one response a question")
    if recipe.rollout.engine != "transformers":
        report(f"  rollout engine {recipe.rollout.engine} -> transformers")
    if recipe.distill.teacher_placement != "device":
        report(f"  teacher placement {recipe.distill.teacher_placement} -> device")
    if recipe.suite.name is not None:
        report(f"  suite {recipe.suite.name} -> not scored")
    if recipe.report_to:
        report(f"  reports to {', '.join(recipe.report_to)} -> none")

    def ending(make: EngineMaker) -> EngineMaker:
        def made(model: PreTrainedModel, roles: Roles) -> RolloutEngine:
            return EndingEngine(make(model, roles), roles.end_token_id)

        return made

    with open_run(small, folder / "run", report, progress, ending, shared_questions=True) as stages:
        stages.grade = substituted_rewards
        results = stages.run_all()
    report(f"every stage took its step; the files are in {folder}")
    return results
