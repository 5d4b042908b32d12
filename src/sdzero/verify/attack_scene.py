"""What lies outside the sandbox while hostile programs run: things to read, to reach, to break, and to watch.

Everything is made for the purpose: a secret in files, in the environment, in the memory and in shared memory
of a bystander process; listeners on loopback and on local sockets; a file that must not change. A program is
told where all of it is; `Scene.effects` says what it got at. Linux only, as sandboxes are.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Self

BYSTANDER_USERS = range(60_706, 61_000)
"""When this process is root the bystander runs as one of these users, which nothing else should use.

Which one depends on the process: an attack that ends all processes of a user leaves other suites alone.
"""

VARIABLE = "SDZERO_ATTACK_SECRET"
GONE_WITHIN_SECONDS = 1.0
NAMESPACES = ("net", "pid", "ipc", "mnt", "uts")
_LEAST_VALUE = 8
"""Shorter values of environment variables are the same in many places."""

_IPC_CREAT, _IPC_RMID = 0o1000, 0
_PRECIOUS = "this line must stay as it is\n"
_BYSTANDER = """
import ctypes, os, sys
secret = ctypes.create_string_buffer(os.environ["SDZERO_ATTACK_SECRET"].encode())
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(int(sys.argv[2]))
    os.setuid(int(sys.argv[2]))
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: whoever has the right may look into it
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)  # PR_SET_PTRACER: that is anybody
print(ctypes.addressof(secret), flush=True)
sys.stdin.read()
"""


class Scene:
    """A context manager. `told` is what a program is told; the secret is in none of it.

    `interpreter_folders` are where programs may also try to write.
    """

    def __init__(self, interpreter_folders: Iterable[str]) -> None:
        self.token, self.secret = secrets.token_hex(8), "secret-" + secrets.token_hex(16)
        self._interpreter_folders = interpreter_folders
        self._user = BYSTANDER_USERS[os.getpid() % len(BYSTANDER_USERS)]
        self._stack = contextlib.ExitStack()
        self._libc = ctypes.CDLL(None, use_errno=True)

    def __enter__(self) -> Self:
        """Make everything."""
        with contextlib.ExitStack() as stack:
            self._make(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove everything."""
        self._stack.close()

    def _make(self, stack: contextlib.ExitStack) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sdzero-attack-"))
        stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        # Open to every user: what keeps a program out is to be the sandbox alone.
        self.folder.chmod(0o777)
        self._precious = self.folder / "precious"
        self._restore()
        files = [self.folder / "secret"]
        home = Path.home()
        if os.access(home, os.W_OK):
            files.append(home / f".sdzero-attack-{self.token}")
        for file in files:
            file.write_text(self.secret)
            file.chmod(0o644)
            stack.callback(file.unlink, missing_ok=True)
        os.environ[VARIABLE] = self.secret
        stack.callback(os.environ.pop, VARIABLE, None)
        self._listeners = {
            "TCP": _listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            "UDP": _listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            "a local socket": _listener(socket.AF_UNIX, socket.SOCK_STREAM, str(self.folder / "socket")),
            "an abstract socket": _listener(socket.AF_UNIX, socket.SOCK_STREAM, f"\0sdzero-{self.token}"),
        }
        (self.folder / "socket").chmod(0o777)
        for listener in self._listeners.values():
            stack.callback(listener.close)
        self._keys = {name: secrets.randbelow(1 << 30) + 1 for name in ("read", "made")}
        self._share_secret()
        stack.callback(self._remove_shared, "read")
        self._start_bystander()
        stack.callback(self._end_bystander)
        stack.callback(self.effects)
        folders = [
            "/",
            "/usr",
            "/usr/lib",
            "/etc",
            "/run",
            "/var/tmp",
            "/dev/shm",
            *self._interpreter_folders,
        ]
        self._folders = list(dict.fromkeys([*folders, str(home), str(self.folder)]))
        self._files = [str(file) for file in files]

    @property
    def mark(self) -> str:
        """The name of files that programs try to make."""
        return f"sdzero-mark-{self.token}"

    @property
    def told(self) -> str:
        """What a program is told, as JSON."""
        told = {
            "token": self.token,
            "tcp": self._listeners["TCP"].getsockname()[1],
            "udp": self._listeners["UDP"].getsockname()[1],
            "socket": str(self.folder / "socket"),
            "abstract": f"\0sdzero-{self.token}",
            "secrets": self._files,
            "precious": str(self._precious),
            "folder": str(self.folder),
            "folders": self._folders,
            "mark": self.mark,
            "bystander": self.bystander.pid,
            "address": self._address,
            "user": self._user,
            "shared": self._keys,
            "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES},
            "environment": [
                hashlib.sha256(value.encode("utf-8", "surrogateescape")).hexdigest()[:16]
                for name, value in os.environ.items()
                if name != "PATH" and len(value) >= _LEAST_VALUE
            ],
        }
        return json.dumps(told)

    def effects(self) -> list[str]:
        """What has happened outside since the last time, in words; it is undone."""
        found = [f"something arrived over {name}" for name in self._listeners if self._arrived(name)]
        for folder in self._folders:
            path = os.path.join(folder, self.mark)
            if os.path.exists(path):  # False for a folder that this process may not enter either
                os.unlink(path)
                found.append(f"a file was made in {folder}")
        if not self._precious.exists() or self._precious.read_text() != _PRECIOUS:
            self._restore()
            found.append("a file outside was changed")
        if self.bystander.poll() is not None:
            self._end_bystander()
            self._start_bystander()
            found.append("a process outside was ended")
        if self._remove_shared("made"):
            found.append("shared memory was left behind")
        left = self._left()
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if left:
            found.append(f"{len(left)} processes were left behind")
        return found

    def _left(self) -> list[int]:
        """Processes that still have our token on their command line after a moment."""
        give_up = time.monotonic() + GONE_WITHIN_SECONDS
        while (left := running_with(self.token)) and time.monotonic() < give_up:
            time.sleep(0.02)
        return left

    def _arrived(self, name: str) -> bool:
        listener, arrived = self._listeners[name], False
        with contextlib.suppress(BlockingIOError):
            while True:
                if listener.type == socket.SOCK_DGRAM:
                    listener.recv(1 << 16)
                else:
                    listener.accept()[0].close()
                arrived = True
        return arrived

    def _restore(self) -> None:
        self._precious.write_text(_PRECIOUS)
        self._precious.chmod(0o666)

    def _start_bystander(self) -> None:
        command = [sys.executable, "-I", "-S", "-c", _BYSTANDER, self.secret, str(self._user)]
        self.bystander = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={VARIABLE: self.secret},
            start_new_session=True,
        )
        assert self.bystander.stdout is not None
        self._address = int(self.bystander.stdout.readline())

    def _end_bystander(self) -> None:
        self.bystander.kill()
        self.bystander.communicate()

    def _share_secret(self) -> None:
        """Put the secret into shared memory that every user may read."""
        size = len(self.secret)
        number = self._libc.shmget(self._keys["read"], size, _IPC_CREAT | 0o666)
        self._libc.shmat.restype = ctypes.c_void_p
        address = self._libc.shmat(number, None, 0)
        if number < 0 or address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "no shared memory can be made")
        ctypes.memmove(address, self.secret.encode(), size)
        self._libc.shmdt(ctypes.c_void_p(address))

    def _remove_shared(self, name: str) -> bool:
        number = self._libc.shmget(self._keys[name], 0, 0)
        return bool(number >= 0 and self._libc.shmctl(number, _IPC_RMID, None) == 0)


def running_with(word: str) -> list[int]:
    """The processes with a word on their command line."""
    found, own = [], str(os.getpid())
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and entry != own:
            with contextlib.suppress(OSError):  # it has ended meanwhile
                if word.encode() in Path(f"/proc/{entry}/cmdline").read_bytes():
                    found.append(int(entry))
    return found


def _listener(family: int, kind: int, address: object) -> socket.socket:
    made = socket.socket(family, kind)
    made.bind(address)  # type: ignore[arg-type]
    if kind == socket.SOCK_STREAM:
        made.listen()
    made.setblocking(False)
    return made
