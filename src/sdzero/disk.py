"""A disk that is full, or a folder that cannot be written, is told as such, whichever library wrote."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from sdzero.errors import UserError

_WRITING_FAILED = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos|basic_ios|iostream")
"""How torch.save, which writes in C++, says that a file could not be written."""


FULL_BYTES = 1 << 20
"""With less room than this a disk is full."""


def _reason(folder: Path) -> str | None:
    """Why a library that does not say so could not write: the disk is full, as far as one can see."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(place).free < FULL_BYTES else None


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Raise UserError if what the block writes into the folder cannot be written."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _WRITING_FAILED.search(str(error)):
            raise
        reason = getattr(error, "strerror", None) or _reason(folder) or str(error).splitlines()[0]
        raise UserError(
            f"a checkpoint or model cannot be written ({reason})",
            str(getattr(error, "filename", None) or folder),
            "check the disk's free space and the permissions; then resume the run: what was finished is kept",
        ) from error
