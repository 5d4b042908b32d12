"""The filter of system calls: its numbers, its decisions, and what the kernel makes of it."""

import errno
import platform
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdzero.errors import UserError
from sdzero.verify.seccomp import CLONE, CLONE3, DENIED, SOCKET, SOCKETPAIR, filter_program
from support import environment

# From linux/seccomp.h, linux/audit.h, linux/sched.h and bits/socket.h.
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
OTHERS = {"i386": 0x40000003, "arm": 0x40000028, "riscv64": 0xC00000F3, "none": 0}
NAMESPACES = {
    "CLONE_NEWTIME": 0x00000080,
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK = 1, 2, 10, 16, 17, 38, 40
SPECIAL = {"clone": CLONE, "clone3": CLONE3, "socket": SOCKET, "socketpair": SOCKETPAIR}
MACHINES = list(ARCHITECTURES)
HEADERS = {
    "x86_64": ("x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h"),
    "aarch64": ("asm-generic/unistd.h",),
}
INSTRUCTION = struct.Struct("=HBBI")


def decision(program: bytes, number: int, *arguments: int, audit: int) -> int:
    """What a filter returns for a system call: an interpreter of the five instructions that it uses."""
    padded = (*arguments, *[0] * (6 - len(arguments)))
    # struct seccomp_data: number, architecture, instruction pointer, six arguments.
    data = struct.pack("=II7Q", number & 0xFFFFFFFF, audit, 0, *padded)
    steps = list(INSTRUCTION.iter_unpack(program))
    at, held = 0, 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x06:  # BPF_RET | BPF_K
            return int(value)
        if code == 0x20:  # BPF_LD | BPF_W | BPF_ABS
            (held,) = struct.unpack_from("=I", data, value)
        elif code == 0x15:  # BPF_JMP | BPF_JEQ | BPF_K
            at += if_true if held == value else if_false
        elif code == 0x35:  # BPF_JMP | BPF_JGE | BPF_K
            at += if_true if held >= value else if_false
        elif code == 0x45:  # BPF_JMP | BPF_JSET | BPF_K
            at += if_true if held & value else if_false
        else:
            raise AssertionError(f"instruction {code:#x}")


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def decide(machine: str, numbers: tuple[int, int] | int, *arguments: int) -> int:
    number = numbers if isinstance(numbers, int) else numbers[MACHINES.index(machine)]
    return decision(filter_program(machine), number, *arguments, audit=ARCHITECTURES[machine])


def test_the_numbers_are_those_of_the_kernels_headers(machine: str) -> None:
    found = [path for name in HEADERS[machine] if (path := Path("/usr/include") / name).is_file()]
    if not found:
        pytest.skip("the kernel's headers are not installed")
    text = found[0].read_text()
    numbers = {
        name: int(number)
        for name, number in re.findall(r"^#define\s+__NR(?:3264)?_(\w+)\s+(\d+)\s*$", text, re.MULTILINE)
    }
    assert numbers, found
    # An older header need not know the newest calls.
    known = {name: of for name, of in (DENIED | SPECIAL).items() if name in numbers}
    assert len(known) > 0.8 * len(DENIED)
    column = MACHINES.index(machine)
    assert {name: of[column] for name, of in known.items()} == {name: numbers[name] for name in known}


def test_no_number_stands_there_twice(machine: str) -> None:
    column = MACHINES.index(machine)
    numbers = [of[column] for of in (DENIED | SPECIAL).values()]
    assert len(set(numbers)) == len(numbers)


def test_what_the_filter_is_there_for_is_denied() -> None:
    # Written down a second time, so that none is lost from the table unseen.
    other_processes = "ptrace process_vm_readv process_vm_writev kcmp pidfd_getfd"
    mounts = (
        "mount umount2 pivot_root chroot open_tree move_mount fsopen fsconfig fsmount fspick mount_setattr"
    )
    namespaces = "unshare setns"
    files = "name_to_handle_at open_by_handle_at fanotify_init quotactl quotactl_fd"
    kernel = "bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register"
    keys = "add_key request_key keyctl"
    machine = (
        "init_module finit_module delete_module kexec_load kexec_file_load reboot swapon swapoff acct syslog"
        " settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname"
    )
    named = " ".join((other_processes, mounts, namespaces, files, kernel, keys, machine)).split()
    assert set(named) - DENIED.keys() == set()


def test_every_denied_call_fails_with_eperm(machine: str) -> None:
    assert {name: decide(machine, of) for name, of in DENIED.items()} == dict.fromkeys(
        DENIED, ERRNO | errno.EPERM
    )


@given(st.integers(0, 2000), st.lists(st.integers(0, 2**64 - 1), max_size=6))
def test_every_other_call_is_allowed_whatever_its_arguments(number: int, arguments: list[int]) -> None:
    for column, machine in enumerate(MACHINES):
        if number not in {of[column] for of in (DENIED | SPECIAL).values()}:
            assert decide(machine, number, *arguments) == ALLOW


def test_what_a_program_needs_is_allowed() -> None:
    needed = {
        "read": 0,
        "write": 1,
        "mmap": 9,
        "dup": 32,
        "fork": 57,
        "execve": 59,
        "exit_group": 231,
        "futex": 202,
    }
    for number in needed.values():
        assert decide("x86_64", number) == ALLOW


@pytest.mark.parametrize("flag", NAMESPACES)
def test_clone_makes_no_namespace(machine: str, flag: str) -> None:
    for more in (0, 17, 0x003D0F00):  # SIGCHLD; the flags of a thread
        assert decide(machine, CLONE, NAMESPACES[flag] | more) == ERRNO | errno.EPERM


@given(st.integers(0, 2**32 - 1))
def test_clone_without_a_namespace_is_allowed(flags: int) -> None:
    wanted = flags & sum(NAMESPACES.values())
    for machine in MACHINES:
        assert decide(machine, CLONE, flags) == (ERRNO | errno.EPERM if wanted else ALLOW)


def test_only_the_first_argument_of_clone_is_its_flags(machine: str) -> None:
    assert decide(machine, CLONE, 17, NAMESPACES["CLONE_NEWUSER"]) == ALLOW


def test_clone3_is_said_not_to_exist(machine: str) -> None:
    assert decide(machine, CLONE3) == ERRNO | errno.ENOSYS


@pytest.mark.parametrize("call", [SOCKET, SOCKETPAIR], ids=["socket", "socketpair"])
def test_sockets_are_of_one_family(machine: str, call: tuple[int, int]) -> None:
    assert decide(machine, call, AF_UNIX, 1) == ALLOW
    for family in (0, AF_INET, AF_INET6, AF_NETLINK, AF_PACKET, AF_ALG, AF_VSOCK, AF_UNIX | 2, 0xFFFFFFFF):
        assert decide(machine, call, family, AF_UNIX) == ERRNO | errno.EPERM
    # The kernel takes the family for an int: what stands in the upper half changes nothing.
    assert decide(machine, call, 1 << 32 | AF_VSOCK) == ERRNO | errno.EPERM
    assert decide(machine, call, 1 << 32 | AF_UNIX) == ALLOW


@pytest.mark.parametrize("other", [*OTHERS, *MACHINES])
def test_calls_of_another_architecture_end_the_program(machine: str, other: str) -> None:
    if other != machine:
        audit = (OTHERS | ARCHITECTURES)[other]
        for number in (0, 1, 101):
            assert decision(filter_program(machine), number, audit=audit) == KILL


@pytest.mark.parametrize("name", ["x86_64", "aarch64"])
@given(number=st.integers(0x40000000, 0xFFFFFFFF))
def test_calls_of_x32_do_not_exist(name: str, number: int) -> None:
    # Else 0x40000000 + 101 would be a ptrace that the table does not name.
    assert decide(name, number) == ERRNO | errno.ENOSYS


def test_the_default_is_this_machine() -> None:
    if platform.machine() in MACHINES:
        assert filter_program() == filter_program(platform.machine())
    else:
        with pytest.raises(UserError):
            filter_program()


def test_an_architecture_without_a_table_is_told() -> None:
    with pytest.raises(UserError, match="architecture riscv64") as caught:
        filter_program("riscv64")
    assert caught.value.where == "verifier.sandbox.backend"
    assert "docker" in str(caught.value.todo)


UNDER_THE_FILTER = """
import ctypes, errno, os, platform, socket, subprocess, sys, threading
from sdzero.verify.seccomp import DENIED, filter_program

program = filter_program()
held = ctypes.create_string_buffer(program, len(program))

class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]

libc = ctypes.CDLL(None, use_errno=True)
given = Filter(len(program) // 8, ctypes.addressof(held))
NO_NEW_PRIVILEGES, SECCOMP, MODE_FILTER = 38, 22, 2
libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
if libc.prctl(SECCOMP, MODE_FILTER, ctypes.byref(given), 0, 0) != 0:
    sys.exit(77 if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM, errno.EACCES) else 1)

column = ("x86_64", "aarch64").index(platform.machine())
for name, numbers in DENIED.items():
    if name == "reboot":
        continue
    # Arguments that the kernel itself would refuse otherwise: an unknown call, a null pointer.
    assert libc.syscall(numbers[column], -1, 0, 0, 0, 0, 0) == -1, name
    assert ctypes.get_errno() == errno.EPERM, (name, errno.errorcode[ctypes.get_errno()])
for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
    try:
        socket.socket(family, socket.SOCK_DGRAM)
    except PermissionError:
        continue
    raise AssertionError(family)
one, other = socket.socketpair()
one.send(b"x")
assert other.recv(1) == b"x"
thread = threading.Thread(target=print, args=["thread"])
thread.start()
thread.join()
print(subprocess.run(["echo", "process"], capture_output=True, text=True, check=True).stdout, end="")
if os.fork() == 0:
    os._exit(0)
assert os.wait()[1] == 0
"""


def test_the_kernel_takes_it_and_programs_still_run() -> None:
    if platform.machine() not in MACHINES:
        pytest.skip("no filter for this architecture")
    done = subprocess.run(
        [sys.executable, "-c", UNDER_THE_FILTER],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77:
        pytest.skip("filters cannot be loaded here")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "thread\nprocess\n"
