"""Starts programs for one worker, from inside the worker's control group; runs as a process of its own.

A process moves into a control group in milliseconds, but is born into its parent's group at once: so this
small process joins the group, once, and every program is a child of it. Programs whose parent ends become
its children too, so that it can bury them all. It uses the standard library alone and starts within
milliseconds.

Messages are JSON on a socket, descriptors beside them. {"start": bubblewrap, "options": its options,
"command": what it is to run, "limits": [[resource, soft, hard], ...]}, with the descriptors that are to be
0, 1, 2, ... there, is answered by {"pid"} with a descriptor of the process; {"bury": pid} by {"status"}, its
wait status, once it and all others that ended are buried. The launcher ends with its socket.
"""

import array
import contextlib
import ctypes
import fcntl
import gc
import json
import os
import resource
import signal
import socket
import sys

PR_SET_CHILD_SUBREAPER = 36
CLONE_NEWNET, CLONE_NEWUTS, CLONE_NEWCGROUP = 0x40000000, 0x04000000, 0x02000000
MESSAGE_BYTES = 1 << 17
DESCRIPTORS = 64
HIGH = 256
"""Descriptors are moved up here before they take their places, so that none takes another's."""

IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""By this interpreter, and its children would be born so."""

IGNORED = (signal.SIGPIPE, signal.SIGXFSZ)
"""By this interpreter, and its children would be born so."""


def receive(channel: socket.socket) -> tuple[dict, list[int]] | None:  # type: ignore[type-arg]
    """A message and its descriptors; None when the other side is gone."""
    size = array.array("i").itemsize * DESCRIPTORS
    data, ancillary, _, _ = channel.recvmsg(MESSAGE_BYTES, socket.CMSG_SPACE(size), socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    found = array.array("i")
    for _, _, content in ancillary:
        found.frombytes(content[: len(content) - len(content) % found.itemsize])
    return json.loads(data), list(found)


def send(channel: socket.socket, message: dict, descriptors: list[int]) -> None:  # type: ignore[type-arg]
    """Send a message, and descriptors with it."""
    beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    channel.sendmsg([json.dumps(message).encode()], beside)


def _prefer(score: str, process: int | str = "self") -> None:
    """How soon the kernel ends a process when its control group runs out of memory: 1000 is first."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/oom_score_adj", "w") as file:
        file.write(score)


def _go_apart() -> bool:
    """Move into namespaces without a network, with another name, as root may; False if it may not.

    Programs are born into them; making these anew for each takes longer, and nothing of a program that is
    gone stays in them.
    """
    if ctypes.CDLL(None).unshare(CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWCGROUP) != 0:
        return False
    socket.sethostname("sandbox")
    return True


def _start(message: dict, descriptors: list[int]) -> int:  # type: ignore[type-arg]
    """Start bubblewrap, limit it, and only then tell it what to do, for which it waits; its process.

    A fork could limit itself, but copies this process' memory, which takes longer than all of this.
    """
    waiting, options = os.pipe()
    moved = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, HIGH) for one in (*descriptors, waiting)]
    places = [(os.POSIX_SPAWN_DUP2, one, number) for number, one in enumerate(moved)]
    command = [message["start"], "--args", str(len(descriptors)), "--", *message["command"]]
    try:
        child = os.posix_spawn(command[0], command, {}, file_actions=places, setsigdef=IGNORED)
        _prefer("1000", child)
        for which, soft, hard in message["limits"]:
            resource.prlimit(child, which, (soft, hard))
        with contextlib.suppress(BrokenPipeError):  # it has failed, and has said why
            os.write(options, "\0".join(message["options"]).encode())
    finally:
        for descriptor in (waiting, options, *moved):
            os.close(descriptor)
    return child


def _bury(pid: int) -> int:
    """The wait status of `pid`; whatever else came of it is ended and buried too."""
    _, status = os.waitpid(pid, 0)
    _end_children()
    return status


def _end_children() -> None:
    """End and bury every child.

    The first process in a sandbox has asked the kernel to end it with bubblewrap outside; but where a program
    runs as the same user, it can write to that process' memory and make it change its mind.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                for child in _children():
                    os.kill(child, signal.SIGKILL)
                os.waitpid(-1, 0)


def _children() -> list[int]:
    own = os.getpid()
    with open(f"/proc/{own}/task/{own}/children") as file:
        return [int(word) for word in file.read().split()]


def _serve(channel: socket.socket) -> None:
    while (received := receive(channel)) is not None:
        message, descriptors = received
        if "bury" in message:
            send(channel, {"status": _bury(message["bury"])}, [])
            continue
        pid = _start(message, descriptors)
        own = os.pidfd_open(pid)
        send(channel, {"pid": pid}, [own])
        for descriptor in [*descriptors, own]:
            os.close(descriptor)


def main() -> None:
    """Serve the socket whose number is the first argument; the others are files to write `0` to, to join."""
    for number in (signal.SIGTERM, signal.SIGUSR1):  # as in worker.py
        signal.signal(number, lambda *_: None)
    gc.disable()  # a collection would touch, and so copy, the memory that children share with this process
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        for group in sys.argv[2:]:
            with open(group, "w") as file:
                file.write("0")
    except OSError as fault:
        send(channel, {"failed": str(fault)}, [])
        return
    # Memory that belongs to files and no process, such as memfds, makes this process look the largest.
    _prefer("0")
    _prefer("-1000")
    send(channel, {"ready": True, "apart": _go_apart()}, [])
    try:
        # A worker that was killed with an answer unread resets the channel, where another one ends it.
        with contextlib.suppress(ConnectionError):
            _serve(channel)
    finally:
        _end_children()


if __name__ == "__main__":
    main()
