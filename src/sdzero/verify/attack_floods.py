"""Hostile programs that use things up, do not end, or aim at whoever reads what they write.

Each is bounded: without any protection it would take a few hundred megabytes, some dozens of processes, or
a few seconds.
"""

import re

from sdzero.verify.attack import Attack, Check, came_to_its_end
from sdzero.verify.sandbox import MEBIBYTE, Ending, Finished, Limits

LATE_SECONDS = 1.0
"""How long after its time a program may still be seen."""

_SEGMENTATION_FAULT = 128 + 11


def at_most(limit: str, slack: int = 0) -> Check:
    """The check that the largest count which a program reports is within a limit."""

    def check(limits: Limits, done: Finished) -> str | None:
        counts = [int(count) for count in re.findall(rb"^count (\d+)$", done.stdout, re.MULTILINE)]
        allowed = getattr(limits, limit)
        if not counts:
            said = done.stderr[-200:].decode(errors="replace").strip()
            return f"it never counted ({done.ending}, {done.exit_code}): {said}"
        return f"{max(counts)} where {limit} is {allowed}" if max(counts) > allowed + slack else None

    return check


def stopped_in_time(limits: Limits, done: Finished) -> str | None:
    """The check that a program which does not end is ended."""
    if done.ending is not Ending.TIMEOUT:
        return f"it was not stopped by the clock ({done.ending}, {done.exit_code})"
    if done.seconds > limits.wall_seconds + LATE_SECONDS:
        return f"it ran {done.seconds:.1f} seconds where wall_seconds is {limits.wall_seconds:g}"
    return None


def cut_off(limits: Limits, done: Finished) -> str | None:
    """The check that a flood of output ends the program."""
    if done.ending is not Ending.OUTPUT:
        return f"it was not stopped for its output ({done.ending}, {done.exit_code})"
    size, allowed = len(done.stdout), limits.output_megabytes * MEBIBYTE
    return f"{size} bytes were kept" if size > 1.1 * allowed else None


def _fell(limits: Limits, done: Finished) -> str | None:
    """The check of the recursion: its own stack ended it, or the memory, and it used no more than it may."""
    if done.ending is Ending.EXITED and done.exit_code != _SEGMENTATION_FAULT:
        said = done.stderr[-200:].decode(errors="replace").strip()
        return f"it ended with {done.exit_code}: {said}"
    return at_most("memory_megabytes")(limits, done)


_within_limit = at_most("memory_megabytes", slack=32)


def _in_total(limits: Limits, done: Finished) -> str | None:
    wrong = _within_limit(limits, done)
    return wrong and f"{wrong}: memory is not limited in total (no control group may be made here?)"


def _shared_out(limits: Limits, done: Finished) -> str | None:
    """The check of memory in many processes: one was ended for it, or it stayed within the limit."""
    return None if done.ending is Ending.MEMORY else _in_total(limits, done)


def _ended_somehow(limits: Limits, done: Finished) -> str | None:
    """The check of the attack on the first process: if it worked, the clock ends the run."""
    return None if done.ending is Ending.TIMEOUT else came_to_its_end(limits, done)


_NEVER_ENDS = {"wall_seconds": 0.5}
_RUNS_LONGER = {"wall_seconds": 1.6}
_ALLOWED_MORE = {"memory_megabytes": 1024}

FLOODING = [
    Attack(
        "fork bomb",
        "starts processes until it may not",
        r"""
for number in range(1, 65):
    try:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
    except OSError as fault:
        say("denied:", repr(fault))
        break
    say("count", number)
""",
        check=at_most("processes"),
        loosened={"processes": 80},
    ),
    Attack(
        "thread bomb",
        "starts threads until it may not",
        r"""
import threading
threading.stack_size(1 << 16)
for number in range(1, 65):
    try:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
    except RuntimeError as fault:
        say("denied:", repr(fault))
        break
    say("count", number)
""",
        check=at_most("processes"),
        loosened={"processes": 80},
    ),
    Attack(
        "memory in one process",
        "takes more memory than it may",
        r"""
kept = []
try:
    for number in range(1, 21):
        kept.append(b"x" * (16 << 20))
        say("count", number * 16)
except MemoryError:
    say("denied: memory")
""",
        check=at_most("memory_megabytes"),
        loosened=_ALLOWED_MORE,
    ),
    Attack(
        "memory in many processes",
        "takes more memory than it may, in processes that each take less",
        r"""
import select
hear, tell = os.pipe()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        kept = b"x" * (40 << 20)
        os.write(tell, b"x")
        time.sleep(5)
        os._exit(0)
    children.append(child)
said, until = 0, time.monotonic() + 3
while said < 8 and time.monotonic() < until:
    if select.select([hear], [], [], 0.02)[0]:
        said += len(os.read(hear, 8))
    if any(os.waitpid(child, os.WNOHANG)[0] for child in children):
        break
say("count", 40 * said)
""",
        check=_shared_out,
        needs_group=True,
        loosened=_ALLOWED_MORE,
    ),
    Attack(
        "memory in no process",
        "takes more memory than it may, in files in memory that belong to no process",
        r"""
block, files = bytes(1 << 19), []
for number in range(1, 57):
    files.append(os.memfd_create("x"))
    for _ in range(7):
        os.write(files[-1], block)
    say("count", number * 7 // 2)
""",
        check=_in_total,
        needs_group=True,
        loosened=_ALLOWED_MORE,
    ),
    Attack(
        "deep recursion",
        "calls itself until the stack is full, Python and C in turn, on the largest stack that it may have",
        r"""
import resource, threading
sys.setrecursionlimit(10**9)
depth = 0
def fall():
    global depth
    depth += 1
    if depth % 1000 == 0:
        say("count", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
    back()
    return 0
back = ctypes.CFUNCTYPE(ctypes.c_int)(fall)
try:
    threading.stack_size(192 << 20)
    faller = threading.Thread(target=back)
    faller.start()
    faller.join()
except (RuntimeError, ValueError, MemoryError) as fault:
    say("denied:", repr(fault))
    back()
""",
        check=_fell,
        loosened=_ALLOWED_MORE,
    ),
    Attack(
        "many files open",
        "opens files until it may not",
        r"""
files = []
for number in range(1, 129):
    try:
        files.append(os.open("/dev/null", os.O_RDONLY))
    except OSError as fault:
        say("denied:", repr(fault))
        break
    say("count", number)
""",
        check=at_most("open_files"),
        loosened={"open_files": 160},
    ),
    Attack(
        "one huge file",
        "writes a file that is larger than it may be",
        r"""
block = bytes(1 << 20)
with open("huge", "wb", buffering=0) as file:
    for number in range(1, 17):
        try:
            file.write(block)
        except OSError as fault:
            say("denied:", repr(fault))
            break
        say("count", number)
""",
        check=at_most("file_megabytes"),
        loosened={"file_megabytes": 32, "disk_megabytes": 32},
    ),
    Attack(
        "a full folder",
        "fills its folder with files",
        r"""
block, full = bytes(1 << 20), False
for number in range(1, 25):
    try:
        with open(str(number), "wb", buffering=0) as file:
            file.write(block)
    except OSError as fault:
        say("denied:", repr(fault))
        break
    say("count", number)
""",
        check=at_most("disk_megabytes"),
        loosened={"disk_megabytes": 32},
    ),
    Attack(
        "flood of output",
        "writes to standard output without end",
        r"""
for _ in range(64):
    os.write(1, b"x" * (1 << 16))
""",
        check=cut_off,
        loosened={"output_megabytes": 16},
    ),
    Attack(
        "flood of errors",
        "writes to standard error without end",
        r"""
for _ in range(64):
    os.write(2, b"x" * (1 << 16))
""",
        check=cut_off,
        loosened={"output_megabytes": 16},
    ),
    Attack(
        "infinite loop",
        "computes without end",
        r"""
while True:
    pass
""",
        check=stopped_in_time,
        limits=_NEVER_ENDS,
        loosened=_RUNS_LONGER,
    ),
    Attack(
        "ignoring signals",
        "ignores every signal that can be ignored, and closes its output",
        r"""
import signal
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
for descriptor in range(3):
    os.close(descriptor)
while True:
    time.sleep(0.01)
""",
        check=stopped_in_time,
        limits=_NEVER_ENDS,
        loosened=_RUNS_LONGER,
    ),
    Attack(
        "standing still",
        "stops itself and everything around, so that nothing comes to an end",
        r"""
import signal
if os.fork() == 0:
    os.kill(os.getppid(), signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGSTOP)
""",
        check=stopped_in_time,
        limits=_NEVER_ENDS,
        loosened=_RUNS_LONGER,
    ),
    Attack(
        "sleeping orphan",
        "leaves processes behind that have left its group and its session and ignore signals",
        r"""
import signal
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)
            for descriptor in range(3):
                os.close(descriptor)
            time.sleep(30)
        os._exit(0)
""",
    ),
    Attack(
        "outliving the sandbox",
        "writes into the first process of the sandbox, so that it does not end when it should",
        r"""
import platform
if os.readlink("/proc/self/ns/pid") == outside["namespaces"]["pid"]:
    say("breach: the first process is the machine's")
    sys.exit()
# prctl(PR_SET_PDEATHSIG, 0), then pause() for ever
code = bytes.fromhex("b89d000000bf0100000031f60f05b8220000000f05ebf7")
try:
    if platform.machine() == "x86_64":
        with open("/proc/1/syscall") as told, open("/proc/1/mem", "r+b", buffering=0) as memory:
            memory.seek(int(told.read().split()[-1], 16))
            memory.write(code)
        if os.fork() == 0:  # an orphan's end wakes it up
            if os.fork() == 0:
                time.sleep(0.05)
            os._exit(0)
        os.wait()
        time.sleep(0.2)
except OSError as fault:
    say("denied:", repr(fault))
""",
        harmless_without=False,  # the first process would be the machine's
        check=_ended_somehow,
        limits=_NEVER_ENDS,
    ),
    Attack(
        "poisoned output",
        "writes what would harm whoever unpacks it: a pickle, compressed zeros, nested JSON, a huge number",
        r"""
import pickle, zlib
class Trap:
    def __reduce__(self):
        return os.system, ("touch " + os.path.join(outside["folder"], outside["mark"]),)
packer = zlib.compressobj(9)
bomb = b"".join(packer.compress(bytes(1 << 24)) for _ in range(4)) + packer.flush()
nested, huge = b"[" * 100_000, b'{"value": ' + b"9" * 100_000 + b"}"
for poison in (pickle.dumps(Trap()), bomb, nested, huge, b"1e400 NaN"):
    os.write(1, poison + b"\n")
    os.write(2, poison + b"\n")
""",
    ),
]
