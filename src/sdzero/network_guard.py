"""A guard in the process: nothing but this machine is reached by Python code while it stands.

It is an audit hook (PEP 578), so it sees every look-up of a name, every connection and every datagram that
goes through Python's sockets, whichever library tries, and refuses those that lead off the machine before
anything is sent. It does not see code that talks to the kernel past them (NCCL, gloo, gRPC, a program that is
started).
Imports nothing but the standard library, for workers that start often.
"""

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from sdzero.errors import UserError

GUARDED = "SDZERO_OFFLINE"
"""Set for processes that a guarded run starts; its value are the hosts that may be reached, with commas."""

LOCAL_FAMILIES = frozenset(
    getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK", "AF_ALG") if hasattr(socket, name)
)
"""Sockets that lead to this machine's processes and kernel only."""

CONNECTION, LOOK_UP = "a connection to", "a look-up of"

Target = tuple[str, object, str]
"""Host, port if there is one, and what is tried."""


class LeavesMachineError(UserError):
    """Something tried to reach another machine, and was kept from it."""


@contextmanager
def guarded(hosts: Iterable[str]) -> Iterator[None]:
    """In the block nothing but this machine and these hosts is reached, by this process and by those that it
    starts and that call `guard_worker`. Raises LeavesMachineError at the place where it is tried."""
    before, told = _guard.allowed, os.environ.get(GUARDED)
    os.environ[GUARDED] = ",".join(sorted(hosts))
    _guard.start(hosts)
    try:
        yield
    finally:
        _guard.allowed = before
        if told is None:
            del os.environ[GUARDED]
        else:
            os.environ[GUARDED] = told


def guard_worker() -> None:
    """Guard this process, for the rest of its life, if the run that started it is guarded."""
    hosts = os.environ.get(GUARDED)
    if hosts is not None:
        _guard.start(host for host in hosts.split(",") if host)


class _Guard:
    """`allowed` are the hosts that may be reached besides this machine; None: everything may."""

    def __init__(self) -> None:
        self.allowed: frozenset[str] | None = None
        self._own_name = ""
        self._watches = False

    def start(self, hosts: Iterable[str]) -> None:
        """Guard from now on. An audit hook cannot be taken out again: with `allowed` None it does nothing."""
        if not self._watches:
            self._own_name = socket.gethostname()
            sys.addaudithook(self._watch)
            self._watches = True
        self.allowed = frozenset(hosts)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        # Called for every event of the process, such as each import: the common way out comes first.
        check = _CHECKS.get(event)
        if check is None or self.allowed is None:
            return
        target = check(arguments)
        if target is None:
            return
        host, port, what = target
        if is_here(host) or host in self.allowed or (what == LOOK_UP and host == self._own_name):
            return
        raise LeavesMachineError(
            f"{what} {host} was refused: the recipe is offline, and nothing may leave this machine",
            host if port is None else f"{host}, port {port}",
            "set online=true if this is meant; for a server of your own see rollout.vllm.allow_remote",
        )


def is_here(host: str) -> bool:
    """Whether a host is this machine: its loopback, or none at all, which Linux takes for it."""
    if host in ("", "localhost"):
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    inner = getattr(address, "ipv4_mapped", None) or address
    return bool(inner.is_loopback or inner.is_unspecified)


def _of_socket(arguments: tuple[Any, ...]) -> Target | None:
    """Of `socket.connect`, `socket.sendto`, `socket.sendmsg`: (the socket, its address)."""
    own, address = arguments
    if address is None or own.family in LOCAL_FAMILIES:
        return None  # a connected socket was looked at when it was connected
    if isinstance(address, tuple) and len(address) >= 2 and isinstance(address[0], str | bytes | bytearray):
        return _text(address[0]), address[1], CONNECTION
    return repr(address), None, CONNECTION


def _of_name(arguments: tuple[Any, ...]) -> Target | None:
    """Of `socket.getaddrinfo` and the like: (host, ...). Without a host it is about this machine."""
    return None if arguments[0] is None else (_text(arguments[0]), None, LOOK_UP)


def _of_address(arguments: tuple[Any, ...]) -> Target | None:
    """Of `socket.getnameinfo`: ((host, port),)."""
    return _text(arguments[0][0]), None, LOOK_UP


def _text(host: Any) -> str:
    return bytes(host).decode("ascii", "replace") if isinstance(host, bytes | bytearray) else str(host)


_CHECKS: dict[str, Callable[[tuple[Any, ...]], Target | None]] = {
    "socket.connect": _of_socket,
    "socket.sendto": _of_socket,
    "socket.sendmsg": _of_socket,
    "socket.getaddrinfo": _of_name,
    "socket.gethostbyname": _of_name,
    "socket.gethostbyaddr": _of_name,
    "socket.getnameinfo": _of_address,
}

_guard = _Guard()
