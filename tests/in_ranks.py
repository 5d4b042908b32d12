"""Functions run in several processes that are connected as those of one run, for tests.

They are forked from one server process that has imported what is heavy, so starting them is quick.
"""

import contextlib
import importlib
import multiprocessing
import os
import pickle
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

PRELOADED = ("sdzero.pipeline", "distill_bench")

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["in_ranks_preload"])


def in_ranks(
    function: Callable[..., Any], *arguments: Any, processes: int = 2, errors: Path | None = None
) -> list[Any]:
    """What `function` returns in each of so many connected processes; an exception is returned as it is.

    `function` and what it takes and returns go through pickle. At most 100 seconds. What the processes print
    as errors goes to the file `errors`.
    """
    tests = Path(__file__).parent
    paths = [str(tests), str(tests.parent / "src"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(path for path in paths if path))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started, ends = [], []
    for rank in range(processes):
        end, other = _context.Pipe(duplex=False)
        own = {"RANK": rank, "WORLD_SIZE": processes, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": processes}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        process = _context.Process(target=_run, args=(function, arguments, own, other, errors), daemon=True)
        process.start()
        other.close()
        started.append(process)
        ends.append(end)
    found = []
    try:
        for rank, end in enumerate(ends):
            if not end.poll(100):
                raise TimeoutError(f"process {rank} of {processes} gave nothing in 100 seconds")
            found.append(_received(end))
    finally:
        for process in started:
            process.join(10)
            if process.is_alive():
                process.kill()
    return found


def _received(end: Connection) -> Any:
    try:
        return pickle.loads(end.recv_bytes())
    except EOFError:
        return SystemExit("the process ended without a result")


def _run(
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    own: dict[str, Any],
    end: Connection,
    errors: Path | None,
) -> None:
    os.environ.update({key: str(value) for key, value in own.items()})
    if errors is not None:
        os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND), sys.stderr.fileno())
    import torch

    from sdzero import process_group

    torch.set_num_threads(1)
    result: Any = None
    try:
        with process_group.joined():
            result = function(*arguments)
    except BaseException as error:
        traceback.print_exc()
        result = error
    with contextlib.suppress(BrokenPipeError):
        end.send_bytes(pickle.dumps(result))


def preload() -> None:
    """Import what the processes need, in the server that they are forked from."""
    for name in PRELOADED:
        importlib.import_module(name)
