"""Several processes in one run: which one this is, how many there are, and what they tell each other.

Every process runs the same code in the same order. What has to be done once is done by the first process
(rank 0), the others wait and then read it; what is worth sharing out is done by each for its part and then
gathered. With one process every function here gives back what it was given, and waits for nobody.

The processes are those of `torch.distributed`, whoever set it up: `sdzero.process_group`, which the command
uses, or accelerate. Imports no torch: where it is not imported yet, there is one process.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def _distributed() -> Any | None:
    """`torch.distributed` if there are several processes that are connected, else None."""
    torch = sys.modules.get("torch")
    found = getattr(torch, "distributed", None)
    if found is None or not found.is_available() or not found.is_initialized():
        return None
    return found if found.get_world_size() > 1 else None


def rank() -> int:
    """The number of this process, from 0."""
    distributed = _distributed()
    return int(distributed.get_rank()) if distributed else 0


def count() -> int:
    """How many processes the run has."""
    distributed = _distributed()
    return int(distributed.get_world_size()) if distributed else 1


def is_first() -> bool:
    """Whether this is the process that writes the run's files and talks to the user."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    gather(None)


def gather(value: T) -> list[T]:
    """What every process gave, in the order of the ranks, for each of them. Values are JSON-like."""
    distributed = _distributed()
    if distributed is None:
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, value)
    return found


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first process, for all; the others do not call it."""
    distributed = _distributed()
    if distributed is None:
        return make()
    found: list[Any] = [make() if is_first() else None]
    distributed.broadcast_object_list(found, src=0)
    made: T = found[0]
    return made


@contextmanager
def turn_of_first() -> Iterator[bool]:
    """True in the first process, for what it alone does, such as writing a file.

    All wait before and after. Before: whoever still looks whether the file is there has looked by then, so
    all go the same way. After: whoever reads it next finds it.
    """
    barrier()
    yield is_first()
    barrier()


def own_share(rows: Sequence[T]) -> list[T]:
    """The rows that fall to this process: every world-th, from its rank on; there may be none."""
    return list(rows[rank() :: count()])


def whole_of_shares(own: Sequence[T]) -> list[T]:
    """All rows in their first order, from the share that each process has finished."""
    shares = gather(list(own))
    whole: list[T] = []
    for place in range(max(map(len, shares))):
        whole += [share[place] for share in shares if place < len(share)]
    return whole


def add_up(values: Sequence[float]) -> list[float]:
    """The sum over the processes of each value, the same in each of them."""
    return [sum(own) for own in zip(*gather(list(values)), strict=True)]
