"""Questions from reasoning-gym's generators, and their entries as JSON.

reasoning-gym scores an answer against the whole entry that it generated, so the entry travels with
the question, in its metadata: {"task": name, "arguments": {...}, "entry": encoded entry}. Some
scorers tell tuples from lists or look up integer keys, which plain JSON loses; `encode` keeps them.
"""

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

from sdzero.errors import UserError
from sdzero.questions.question import Question
from sdzero.recipe import DataSettings

TAG = "__sdzero__"
"""Key that marks an encoded tuple, set, or mapping with keys that are not strings."""


def puzzle_questions(settings: DataSettings) -> Iterator[Question]:
    """`settings.pool` questions in all, shared evenly over `settings.tasks`, task after task.

    The generators' seed is `split_seed`; a question's kind is its task, its id is `task-index`.
    Raises UserError for an unknown task, for arguments that the task refuses, and for a task without
    reference answers. See https://github.com/open-thought/reasoning-gym.
    """
    tasks = list(dict.fromkeys(settings.tasks))
    share, extra = divmod(settings.pool, len(tasks))
    if share == 0:
        raise UserError(
            f"a pool of {settings.pool} does not reach for {len(tasks)} tasks", "data.pool", "make it larger"
        )
    sizes = [share + (position < extra) for position in range(len(tasks))]
    datasets = [
        make_task(task, settings.task_arguments.get(task, {}), size=size, seed=settings.split_seed)
        for task, size in zip(tasks, sizes, strict=True)
    ]
    for task, dataset, size in zip(tasks, datasets, sizes, strict=True):
        arguments = dict(settings.task_arguments.get(task, {}))
        for index in range(size):
            yield _question(task, arguments, dataset[index], f"{task}-{index}")


def make_task(task: str, arguments: Mapping[str, Any], size: int = 1, seed: int = 0) -> Any:
    """A reasoning-gym dataset; its `score_answer` grades what a dataset of equal arguments made."""
    from reasoning_gym.factory import DATASETS, create_dataset

    if task not in DATASETS:
        nearest = difflib.get_close_matches(task, DATASETS, n=3, cutoff=0.4)
        raise UserError(
            f"reasoning-gym has no task `{task}`",
            where="data.tasks",
            todo=f"did you mean {' or '.join(nearest)}?"
            if nearest
            else "see reasoning-gym's gallery of tasks",
        )
    if own := {"size", "seed"} & set(arguments):
        raise UserError(
            f"`{min(own)}` is not an argument of a task here",
            where=f"data.task_arguments.{task}",
            todo="data.pool sets the number of questions, data.split_seed the seed",
        )
    try:
        return create_dataset(task, size=size, seed=seed, **arguments)
    # A generator's settings are checked by asserts and by whatever its constructor raises.
    except Exception as fault:
        raise UserError(
            f"reasoning-gym refuses the arguments of `{task}`: {fault or type(fault).__name__}",
            where=f"data.task_arguments.{task}",
            todo="see the task's configuration class in reasoning-gym",
        ) from fault


def _question(task: str, arguments: dict[str, Any], entry: dict[str, Any], name: str) -> Question:
    text, answer = entry["question"], entry["answer"]
    if not isinstance(answer, str) or not answer.strip():
        raise UserError(
            f"the task `{task}` gives no reference answer",
            where=f"reasoning-gym, {name}",
            todo="take the task out of data.tasks; every question here needs a reference answer",
        )
    try:
        metadata = {"task": task, "arguments": encode(arguments), "entry": encode(entry)}
    except TypeError as fault:
        raise UserError(
            f"an entry of the task `{task}` cannot be kept as JSON: {fault}",
            where=f"reasoning-gym, {name}",
            todo="take the task out of data.tasks",
        ) from fault
    return Question(name, text, answer, kind=task, metadata=metadata)


def encode(value: Any) -> Any:
    """JSON-like data that `decode` turns back into an equal value. Raises TypeError if it cannot."""
    if value is None or isinstance(value, bool):
        return value
    # int(), float() and str() also turn a subclass (an Enum's member) into the plain value.
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {TAG: "tuple", "items": [encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {TAG: "set", "items": sorted((encode(item) for item in value), key=repr)}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and TAG not in value:
            return {str.__str__(key): encode(item) for key, item in value.items()}
        return {TAG: "dict", "items": [[encode(key), encode(item)] for key, item in value.items()]}
    raise TypeError(f"a value of type {type(value).__name__} ({value!r:.80}) is not JSON-like")


def decode(value: Any) -> Any:
    """The value that `encode` was given (sets come back as sets, frozen or not)."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if TAG not in value:
        return {key: decode(item) for key, item in value.items()}
    items = decode(value["items"])
    if value[TAG] == "tuple":
        return tuple(items)
    return set(items) if value[TAG] == "set" else {key: item for key, item in items}
