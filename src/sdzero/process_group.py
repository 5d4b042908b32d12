"""The processes of one run find each other, and end together.

Whatever started them (`sdzero run --num-processes`, `accelerate launch`, torchrun) has set `RANK`,
`WORLD_SIZE`, `MASTER_ADDR` and `MASTER_PORT`. They connect here, before anything else of the run, so that
the run folder has one writer.

If one of them fails, it leaves the reason in the store that they share; a thread of each other process looks
there every `SECONDS_BETWEEN_LOOKS`, and ends its process, whatever it is waiting for. So the reason that
the user sees is that of the process that failed first, and none waits for one that is gone.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from sdzero import deepspeed_settings
from sdzero.errors import UserError
from sdzero.stopping import Stopped

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

SECONDS_BETWEEN_LOOKS = 0.5
LINGER_SECONDS = 5.0
"""How long a first process that fails keeps the store open, for the others to read why."""
COLLECTIVE_HOURS = 6.0
"""How long a process waits for the others at most: for as long as the slowest one samples or grades."""
STORE_SECONDS = 300.0
"""How long the processes may take to find each other."""

ONE_IS_GONE = "another process of the run is gone without a word: it was killed, perhaps for memory"
FIRST_IS_GONE = "process 0 is gone: it was killed, perhaps for memory, or its machine is lost"

FSDP_NEEDS = {
    "fsdp_version": "2",
    "fsdp_cpu_ram_efficient_loading": "false",
    "fsdp_state_dict_type": "FULL_STATE_DICT",
}
"""What accelerate's configuration must say: each process loads whole models, for sampling and as teacher."""


class PeerError(UserError):
    """Another process of the run failed first; it has told the user why."""


def check_launcher() -> None:
    """Raise UserError for a configuration of accelerate's that cannot be used here."""
    deepspeed_settings.check(processes_started())
    if not deepspeed_settings.asks_for("FSDP"):
        return
    for key, value in FSDP_NEEDS.items():
        found = os.environ.get(key.upper(), "unset")
        if found.lower() != value.lower():
            raise UserError(
                f"accelerate's configuration has {key}: {found}, and FSDP needs {value} here",
                f"fsdp_config.{key}",
                "start from recipes/distributed/fsdp2.yaml",
            )
    if processes_started() == 1:
        raise UserError(
            "FSDP shards over several processes, and there is one", "num_processes", "set it to 2 or more"
        )


def processes_started() -> int:
    """How many processes the launcher says there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def joined() -> Iterator[None]:
    """Connect the processes for what the block does. With one process: nothing.

    Raises PeerError in place of an error that follows from another process's. Raises UserError if the
    processes do not find each other.
    """
    check_launcher()
    if processes_started() == 1:
        yield
        return
    import torch
    from torch.distributed.distributed_c10d import PrefixStore

    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
        backend = "cuda:nccl,cpu:gloo"
    else:
        deepspeed_settings.stay_on_cpu()
    peers = _Peers(_store(rank), rank)
    hours = timedelta(hours=COLLECTIVE_HOURS)
    torch.distributed.init_process_group(
        backend,
        store=PrefixStore("sdzero", peers.store),
        rank=rank,
        world_size=processes_started(),
        timeout=hours,
    )
    peers.watch()
    stopped: Stopped | None = None
    try:
        try:
            yield
        except Stopped as asked:  # all of them stop, at the same place
            stopped = asked
        peers.part()
    except BaseException as error:
        first = peers.tell(error)
        if first is not None:
            raise PeerError(first) from error
        raise
    torch.distributed.destroy_process_group()
    if stopped is not None:
        raise stopped


def _store(rank: int) -> "Store":
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    # torchrun and accelerate keep a store of their own, which outlives any process of the run.
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        return TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            processes_started(),
            is_master=rank == 0 and not hosted,
            timeout=timedelta(seconds=STORE_SECONDS),
        )
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"the {processes_started()} processes of the run did not find each other ({error})",
            "MASTER_ADDR, MASTER_PORT",
            "start them with `sdzero run --num-processes`, accelerate launch or torchrun",
        ) from error


class _Peers:
    """What the processes tell each other about failures."""

    def __init__(self, store: "Store", rank: int) -> None:
        self.store = store
        self._rank = rank
        # The main thread may wait in the other one.
        self._own: Store = store.clone()  # type: ignore[attr-defined]
        # A launcher that starts all processes again keeps its store.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._failed, self._failures = f"sdzero/failed/{attempt}", f"sdzero/failures/{attempt}"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="peers", daemon=True)

    def watch(self) -> None:
        """Begin to look whether another one failed."""
        self._thread.start()

    def part(self) -> None:
        """All went well: stop looking, then wait for the others, so that none misses the store."""
        from sdzero import ranks

        ranks.barrier()
        self._over.set()
        self._thread.join()
        ranks.barrier()

    def tell(self, error: BaseException) -> str | None:
        """Leave the reason for the others. If another one failed before: why that one did."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        what = str(error) or type(error).__name__
        try:
            if _is_lost_connection(error):
                # Whoever fails says so before its connections are closed; who is killed says nothing.
                self._wait_for_reason()
                return self._reason()
            if self._own.add(self._failures, 1) == 1:
                self._own.set(self._failed, f"process {self._rank} failed: {what}")
                if self._rank == 0:
                    time.sleep(LINGER_SECONDS)
                return None
            self._wait_for_reason()
            return self._reason()
        except RuntimeError:  # the store went with the first process
            return FIRST_IS_GONE

    def _wait_for_reason(self) -> None:
        give_up = time.monotonic() + LINGER_SECONDS
        while not self._own.check([self._failed]) and time.monotonic() < give_up:
            time.sleep(0.1)

    def _reason(self) -> str:
        return self._own.get(self._failed).decode() if self._own.check([self._failed]) else ONE_IS_GONE

    def _look(self) -> None:
        while not self._over.wait(SECONDS_BETWEEN_LOOKS):
            try:
                if not self._own.check([self._failed]):
                    continue
                reason = self._reason()
            except RuntimeError:
                reason = FIRST_IS_GONE
            if self._over.is_set():
                return
            # The main thread may wait in a collective for one that will never come.
            print(f"process {self._rank} stops: {reason}", file=sys.stderr, flush=True)
            os._exit(1)


def _is_lost_connection(error: BaseException) -> bool:
    """Whether an error says that another process is gone, and not why."""
    from torch.distributed import DistError

    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo")
    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
