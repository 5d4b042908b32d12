"""One worker process of a VerifierPool: reads chunks of responses, grades them one by one.

Messages both ways are JSON behind a length (4 bytes, big-endian), over the pipes that were standard
input and output; those two then become the null device and standard error, so that a verifier that
prints cannot disturb the messages. Each result is sent as soon as it is known: that is what lets the
pool keep the time of every single item. A worker ends when its input ends, so it does not outlive the
pool by more than one item. Imports no torch.
"""

import contextlib
import json
import os
import signal
import struct
from pathlib import Path
from typing import Any, BinaryIO

from sdzero.errors import UserError
from sdzero.network_guard import guard_worker
from sdzero.questions.question import Question
from sdzero.questions.splits import question_from_json, question_to_json
from sdzero.verify.verdict import Outcome, Verdict
from sdzero.verify.verifier import Verifier, make_verifier

HEADER = struct.Struct(">I")
ORPHAN_SECONDS = 10.0
"""How long past the time-out an item may run if there is no pool left to end it."""
DETAIL_LENGTH = 500


def frame(message: Any) -> bytes:
    """A message as bytes, its length in front. Raises TypeError if it is not JSON-like."""
    payload = json.dumps(message).encode("ascii")
    return HEADER.pack(len(payload)) + payload


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of the data to a blocking pipe. Raises BrokenPipeError if nobody reads it."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main() -> None:
    """Serve the pool at standard input and output until it hangs up."""
    # Slurm tells all processes of a run to stop, and the run may have its step to finish. Not ignored: that
    # would be handed down to the programs that are started.
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    requests = os.fdopen(os.dup(0), "rb")
    results = os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    _offer_to_the_memory_killer()
    guard_worker()
    # A pool that is gone shows as a broken pipe; there is nobody left to tell.
    with contextlib.suppress(BrokenPipeError):
        _serve(requests, results)


def _serve(requests: BinaryIO, results: int) -> None:
    order = _read(requests)
    if order is None:
        return
    try:
        verifier = make_verifier(order["verifier"], order["options"])
        ready = {"canaries": [_canary_to_json(canary) for canary in verifier.canaries()]}
        greeting = frame(ready)
    except UserError as fault:
        write_all(results, frame({"refused": [fault.what, fault.where, fault.todo]}))
        return
    # The verifier may be the user's code, which may raise anything; the pool tells the user.
    except Exception as fault:
        what = f"the verifier `{order['verifier']}` does not start: {type(fault).__name__}: {fault}"
        write_all(results, frame({"refused": [what, "verifier.name", "mend the verifier"]}))
        return
    write_all(results, greeting)
    limit = float(order["timeout_seconds"]) + ORPHAN_SECONDS
    while (chunk := _read(requests)) is not None:
        for question, response in chunk:
            # The pool ends an item that takes too long. Should the pool itself be gone, the kernel does,
            # even from within C code, since the signal keeps its default action.
            signal.setitimer(signal.ITIMER_REAL, limit)
            verdict = _grade(verifier, question_from_json(question), response)
            signal.setitimer(signal.ITIMER_REAL, 0)
            write_all(results, frame([verdict.outcome, verdict.detail[:DETAIL_LENGTH]]))
    if hasattr(verifier, "close"):
        verifier.close()


def _grade(verifier: Verifier, question: Question, response: str) -> Verdict:
    try:
        verdict = verifier.grade(question, response)
        if not isinstance(verdict, Verdict):
            raise TypeError(f"the verifier returned {verdict!r}, not a Verdict")
    # Whatever a verifier raises, sys.exit() included, is our own fault and not the model's.
    except (Exception, SystemExit) as fault:
        return Verdict(Outcome.ERROR, f"{type(fault).__name__}: {fault}")
    return verdict


def _read(requests: BinaryIO) -> Any:
    """The next message; None when the pool has hung up."""
    header = requests.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    (length,) = HEADER.unpack(header)
    payload = requests.read(length)
    return json.loads(payload) if len(payload) == length else None


def _canary_to_json(canary: Any) -> list[Any]:
    return [question_to_json(canary.question), canary.response, canary.outcome]


def _offer_to_the_memory_killer() -> None:
    """If memory runs out, let Linux end this process rather than the training that it serves."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        # A container may forbid it; then the kernel chooses as it always would.
        with contextlib.suppress(OSError):
            score.write_text("1000")


if __name__ == "__main__":
    main()
