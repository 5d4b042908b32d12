"""`sdzero doctor` on a recipe's model: its files, its tokenizer and template, whether it thinks."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.onprem.findings import Finding, Subject, warning


def model_folder(path: str) -> Path:
    """Where the files of a recipe's model are. Raises UserError if they are not on this machine, or could do
    harm when they are read."""
    from sdzero.models import local_folder
    from sdzero.safe_model import check_safe

    folder = local_folder(path)
    if folder is None:
        raise UserError(
            f"the model {path} is not on this machine",
            "model.path",
            "let a machine with a network download it, copy it here, and set model.path to its folder",
        )
    check_safe(folder)
    return folder


def model(subject: Subject) -> Iterator[Finding]:
    """The recipe's model is on this machine, whole, safetensors without code, and its template serves."""
    if subject.recipe is None:
        return
    from sdzero.method.roles import Roles
    from sdzero.method.thinking import thinking_of, thinking_warning
    from sdzero.models import load_tokenizer

    path = subject.recipe.model.path
    folder = model_folder(path)
    missing = missing_weights(folder)
    if missing:
        raise UserError(f"the model is not whole: there is no {missing[0]}", str(folder), "copy it again")
    tokenizer = load_tokenizer(str(folder))
    Roles(tokenizer, subject.recipe.phrases, subject.recipe.chat)
    yield Finding("model", True, path if tiny.world_of_model(path) else str(folder))
    thinking = thinking_of(tokenizer, subject.recipe.chat)
    told = thinking_warning(thinking, subject.recipe.distill)
    if told is not None:
        yield warning("thinking", told)
    elif thinking.kind != "none":
        state = (
            f"with distill.divergence_on={subject.recipe.distill.divergence_on}" if thinking.is_on else "off"
        )
        yield Finding("thinking", True, f"a thinking model, {state} ({'; '.join(thinking.seen)})")


def tokenizer(subject: Subject) -> Iterator[Finding]:
    """Every token of the tokenizer has a row in the model, and a turn has an end that is one token."""
    if subject.recipe is None or "model" in subject.failed:
        return
    from sdzero.method.roles import Roles
    from sdzero.models import load_tokenizer

    folder = model_folder(subject.recipe.model.path)
    own = load_tokenizer(str(folder))
    rows = _vocabulary(folder)
    highest = max(own.get_vocab().values())
    if rows is not None and highest >= rows:
        yield Finding(
            "tokenizer",
            False,
            f"it has a token {highest}, and the model's vocabulary ends at {rows - 1}",
            "use the tokenizer and the model that belong together",
        )
        return
    yield Finding("tokenizer", True, f"{len(own):,} tokens, of {'?' if rows is None else f'{rows:,}'} rows")
    roles = Roles(own, subject.recipe.phrases, subject.recipe.chat)
    end = own.decode([roles.end_token_id])
    counts = " and ".join(str(len(roles.control_phrase_ids(reward))) for reward in (0, 1))
    detail = f"a turn ends with {end}; the control phrases for r = 0 and r = 1 have {counts} tokens"
    yield Finding("chat template", True, detail)


def missing_weights(folder: Path) -> list[str]:
    """Files of weights that a model's folder should have and has not."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return [name for name in names_in_index(index) if not (folder / name).is_file()]
    return [] if any(folder.glob("*.safetensors")) else ["model.safetensors"]


def names_in_index(index: Path) -> list[str]:
    """The files of weights that a `model.safetensors.index.json` names. Raises UserError if it is damaged."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a file in it has no name")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"the index of the weights cannot be read: {error}", str(index), "copy the model again"
        ) from error
    return sorted(names)


def _vocabulary(folder: Path) -> int | None:
    """Rows of the embedding, from the configuration; None where it does not say (an adapter's folder)."""
    file = folder / "config.json"
    values: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = values.get("vocab_size", values.get("text_config", {}).get("vocab_size"))
    return found if isinstance(found, int) else None
