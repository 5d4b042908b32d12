"""Open a Hugging Face dataset: a folder or file on this machine, or a hub id (the only network use)."""

import re
from pathlib import Path
from typing import Any

from sdzero.errors import UserError

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
"""The `datasets` builder for a data file, by the file's suffix."""

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def open_dataset(path: str, subset: str | None, split: str) -> Any:
    """Open one split as a `datasets.Dataset`.

    `path` is a folder written by `save_to_disk`, a folder with parquet, JSONL or CSV files, one such
    file, or a hub id `owner/name`, which is downloaded, or read from the cache when offline. Code that
    comes with a dataset is never run. Raises UserError for whatever `datasets` cannot open.
    See https://huggingface.co/docs/datasets/loading.
    """
    local = Path(path).expanduser()
    if local.is_file():
        return _open_file(local, subset, split)
    if local.is_dir():
        return _open_folder(local, subset, split)
    if not HUB_ID.fullmatch(path):
        raise UserError(
            "there is no such file or folder, and it does not look like a hub id (owner/name)",
            where=path,
            todo="set data.path to a local folder or file, or to a dataset's id on the hub",
        )
    return _load(path, path, subset, split)


def _open_file(file: Path, subset: str | None, split: str) -> Any:
    builder = BUILDERS.get(file.suffix)
    if builder is None:
        raise UserError(
            f"data files of type `{file.suffix}` are not read",
            where=str(file),
            todo=f"use one of {', '.join(BUILDERS)}",
        )
    if subset is not None:
        raise UserError("a single file has no subsets", where=str(file), todo="leave data.subset unset")
    # A file has no splits of its own, so it stands for the split that is asked for.
    name = split.partition("[")[0]
    return _load(builder, str(file), None, split, data_files={name: str(file)})


def _open_folder(folder: Path, subset: str | None, split: str) -> Any:
    saved = (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file()
    if not saved:
        return _load(str(folder), str(folder), subset, split)
    if subset is not None:
        raise UserError(
            "a folder written by save_to_disk has no subsets", str(folder), "leave data.subset unset"
        )
    import datasets

    try:
        dataset = datasets.load_from_disk(str(folder))
    except Exception as fault:
        raise _cannot_open(str(folder), fault) from fault
    if not isinstance(dataset, datasets.DatasetDict):
        stored = dataset.split
        if stored is not None and str(stored) != split:
            raise UserError(
                f"the folder holds split `{stored}`, not `{split}`",
                str(folder),
                f"set data.split to {stored}",
            )
        return dataset
    if split not in dataset:
        raise UserError(
            f"there is no split `{split}`; the splits are: {', '.join(dataset)}",
            where=str(folder),
            todo="set data.split to one of them",
        )
    return dataset[split]


def _load(builder: str, path: str, subset: str | None, split: str, **arguments: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(builder, name=subset, split=split, **arguments)
    except ConnectionError as fault:
        raise UserError(
            f"the dataset is not on this machine, and the hub cannot be reached ({fault})",
            where=path,
            todo="go online (online=true in the recipe, HF_HUB_OFFLINE unset), or copy the dataset here and"
            " set data.path to its folder",
        ) from fault
    # `datasets` raises whatever its readers raise, and all of it is about the data or its place.
    except Exception as fault:
        raise _cannot_open(path, fault) from fault


def _cannot_open(path: str, fault: Exception) -> UserError:
    cause = fault.__cause__
    reason = f"{fault}" if cause is None else f"{fault} ({type(cause).__name__}: {cause})"
    return UserError(
        f"the dataset cannot be opened: {' '.join(reason.split())[:600] or type(fault).__name__}",
        where=path,
        todo="check data.path, data.subset and data.split",
    )
