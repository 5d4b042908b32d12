"""A filter of system calls for programs in the sandbox, as the BPF program that the kernel takes.

Namespaces keep a program away from files, processes and the network. The filter closes what is left:
socket families that know no network namespace (AF_VSOCK reaches the hypervisor), new user namespaces
(in which a program would be root of its own), and parts of the kernel that no answer to a question needs
and that have had holes (bpf, io_uring, keyrings, perf, userfaultfd). Whatever is not named here is allowed.
A denied call fails with EPERM. Source: https://docs.kernel.org/userspace-api/seccomp_filter.html.
"""

import errno
import platform
import struct

from sdzero.errors import UserError

_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Which column of the table below, and the AUDIT_ARCH constant."""

DENIED = {
    # looking into other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # mounts, namespaces, other roots
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    # the kernel itself
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "syslog": (103, 116),
    # clocks and names of the machine
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
}
"""Denied calls, with their numbers on x86_64 and on aarch64."""

CLONE, CLONE3, SOCKET, SOCKETPAIR = (56, 220), (435, 435), (41, 198), (53, 199)
NEW_NAMESPACES = 0x7E020080
"""The CLONE_NEW... flags (time, mount, cgroup, UTS, IPC, user, PID, network)."""
AF_UNIX = 1
X32_BIT = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _fail(number: int) -> bytes:
    return _step(_RETURN, 0x00050000 | number)


def filter_program(machine: str | None = None) -> bytes:
    """The filter for a machine (default: this one), for bubblewrap's `--seccomp`.

    Raises UserError for an architecture whose system calls are not in the table.
    """
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise UserError(
            f"there is no filter of system calls for the architecture {machine}",
            "verifier.sandbox.backend",
            f"grade programs on one of {', '.join(_ARCHITECTURES)}, or use docker or podman",
        )
    column, audit = _ARCHITECTURES[machine]
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, audit, if_true=1),
        _step(_RETURN, _KILL),  # 32-bit calls have other numbers
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, X32_BIT, if_false=1),
        _fail(errno.ENOSYS),
        # Its flags lie in memory, where no filter can see them; the C library then uses clone.
        _step(_EQUAL, CLONE3[column], if_false=1),
        _fail(errno.ENOSYS),
    ]
    for numbers in DENIED.values():
        steps += [_step(_EQUAL, numbers[column], if_false=1), _fail(errno.EPERM)]
    steps += [
        _step(_EQUAL, CLONE[column], if_false=3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, NEW_NAMESPACES, if_false=6),
        _fail(errno.EPERM),
        _step(_EQUAL, SOCKET[column], if_true=1),
        _step(_EQUAL, SOCKETPAIR[column], if_false=3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_EQUAL, AF_UNIX, if_true=1),
        _fail(errno.EPERM),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(steps)
