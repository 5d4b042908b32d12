"""What safetensors files hold, from their headers alone. Imports no torch."""

import json
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

from sdzero.errors import UserError

LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000
"""What safetensors itself takes for a header at most."""


def numbers_by_type(weights: Sequence[Path]) -> Counter[str]:
    """How many numbers the files hold of each type, by its name there (`BF16`, `F32`, ...).

    A file begins with the header's length (8 bytes, little endian), then the header in JSON
    (https://huggingface.co/docs/safetensors). Raises UserError for a file that does not, or is of another
    length than its header says.
    """
    found: Counter[str] = Counter()
    for file in weights:
        try:
            with file.open("rb") as opened:
                length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
                size = file.stat().st_size
                if length > size:
                    raise ValueError("its header is longer than the file")
                if length > MOST_HEADER_BYTES:
                    raise ValueError("its header is too long")
                header = json.loads(opened.read(length))
            tensors = [one for name, one in header.items() if name != "__metadata__"]
            whole = LENGTH_BYTES + length + max((one["data_offsets"][1] for one in tensors), default=0)
            if whole != size:
                raise ValueError(f"it has {size:,} bytes, and by its header {whole:,}")
            for tensor in tensors:
                found[tensor["dtype"]] += prod(tensor["shape"])
        except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise UserError(
                f"the weights cannot be read: {error}", str(file), "copy the model again"
            ) from error
    return found
