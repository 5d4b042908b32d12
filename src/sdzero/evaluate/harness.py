"""Scores by lm-evaluation-harness, an extra, on tasks in local YAML files.

    lm_eval/NAME.json      the harness's own results of the model NAME, and the tasks' files

The harness is given the model as we load it, with the model's chat template, and only the tasks that the user
names: its own thousands, which read data from the hub, are not looked at.
"""

import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sdzero.errors import UserError
from sdzero.models import load_tokenizer
from sdzero.run_context import RunContext

BATCH = 8
"""Requests that the harness scores at one time: it makes whole logits, [requests, tokens, vocabulary]."""


def score_with_harness(context: RunContext, tasks: Path, models: Mapping[str, str]) -> dict[str, Any]:
    """Score `models` (name -> folder or hub id) on the tasks in `tasks`, a YAML file or a folder of them.

    Keeps `lm_eval/NAME.json` in the run; a model that has one there for the same tasks is not scored again.
    Returns the harness's metrics by model and task. Raises UserError without the extra, without tasks, and
    for a stored score of other tasks.
    """
    files = task_files(tasks)
    require_harness()
    found: dict[str, Any] = {}
    for name, path in models.items():
        stored = f"lm_eval/{name}.json"
        header = {"model": path, "tasks": {one: file.read_text() for one, file in files.items()}}
        if context.run.path(stored).exists():
            kept = context.run.read_json(stored)
            if any(kept[key] != value for key, value in header.items()):
                raise UserError(
                    f"the name `{name}` holds scores of another model or of other tasks",
                    str(context.run.path(stored)),
                    "pass --name, or another --output",
                )
        else:
            context.report(f"lm-evaluation-harness, {name}: {', '.join(files)}")
            kept = header | {"results": _score(context, path, list(files), tasks)}
            context.run.write_json(stored, kept)
        found[name] = kept["results"]
    return found


def task_files(tasks: Path) -> dict[str, Path]:
    """The tasks' files by the tasks' names. Raises UserError if there are none, or one is no task."""
    files = sorted(tasks.glob("*.y*ml")) if tasks.is_dir() else [tasks] if tasks.is_file() else []
    if not files:
        raise UserError("there are no tasks here", str(tasks), "name a YAML file, or a folder of them")
    named = {}
    for file in files:
        try:
            values = yaml.load(file.read_text(), _AnyTag)
        except yaml.YAMLError as error:
            raise UserError(f"the task cannot be read: {error}", str(file)) from error
        if not isinstance(values, dict) or not isinstance(values.get("task"), str):
            raise UserError("the file has no `task`", str(file), "see docs/export.md for an example")
        named[values["task"]] = file
    return named


class _AnyTag(yaml.SafeLoader):
    """Reads tasks that call functions (`!function`), without calling any."""


_AnyTag.add_multi_constructor("!", lambda loader, tag, node: None)


def require_harness() -> None:
    """Raise UserError if lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError(
            "lm-evaluation-harness is not installed", "--lm-eval", "pip install 'sdzero[lm-eval]'"
        )


def _score(context: RunContext, path: str, names: list[str], tasks: Path) -> dict[str, Any]:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    model = context.load(path)
    model.train(False)
    language_model = HFLM(
        pretrained=model,
        tokenizer=load_tokenizer(path),
        batch_size=min(context.recipe.rollout.batch_size, BATCH),
    )
    folder = tasks if tasks.is_dir() else tasks.parent
    scored = simple_evaluate(
        model=language_model,
        tasks=names,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        log_samples=False,
        random_seed=context.recipe.seed,
        numpy_random_seed=context.recipe.seed,
        torch_random_seed=context.recipe.seed,
        fewshot_random_seed=context.recipe.seed,
    )
    assert scored is not None, "only a rank above 0 gets none"
    kept: dict[str, Any] = json.loads(json.dumps(scored["results"], default=str))
    return kept
