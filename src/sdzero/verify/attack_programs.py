"""Hostile programs that reach out of the sandbox; those that use things up are in `attack_floods.py`."""

from sdzero.verify.attack import Attack

REACHING = [
    Attack(
        "tcp",
        "connects to a port of the machine",
        r"""
import socket
def reach():
    with socket.create_connection(("127.0.0.1", outside["tcp"]), timeout=1) as connection:
        connection.sendall(b"hello")
attempt("a connection over TCP", reach)
""",
    ),
    Attack(
        "udp",
        "sends to a port of the machine",
        r"""
import socket
def reach():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"hello", ("127.0.0.1", outside["udp"]))
try:
    reach()
except OSError as fault:
    say("denied:", repr(fault))
""",
    ),
    Attack(
        "local sockets",
        "connects to a socket of the machine by its path, and to an abstract one",
        r"""
import socket
def reach(address):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(b"hello")
attempt("a connection to a local socket", reach, outside["socket"])
attempt("a connection to an abstract socket", reach, outside["abstract"])
""",
    ),
    Attack(
        "other sockets",
        "opens raw sockets and sockets to the hypervisor; looks whether it has namespaces of its own",
        r"""
import socket
def reach_hypervisor():
    with socket.socket(40, socket.SOCK_STREAM) as connection:  # AF_VSOCK
        connection.settimeout(0.2)
        try:
            connection.connect((2, 1 << 30))
        except (ConnectionError, TimeoutError):
            pass  # it has been asked, and said no
attempt("asking the hypervisor", reach_hypervisor)
attempt("a packet socket", socket.socket, 17, socket.SOCK_RAW)
attempt("a raw socket", socket.socket, socket.AF_INET, socket.SOCK_RAW, 1)
try:
    netlink = socket.socket(16, socket.SOCK_RAW)
    say("interfaces", socket.if_nameindex())
except OSError as fault:
    say("denied:", repr(fault))
for name, there in outside["namespaces"].items():
    say("breach: the machine's namespace" if os.readlink("/proc/self/ns/" + name) == there else "own", name)
""",
    ),
    Attack(
        "secret files",
        "reads files of the machine by their path and around it",
        r"""
for path in outside["secrets"]:
    for root in ("", "/proc/self/root", "/proc/1/root", "/proc/self/cwd/../../../../.."):
        show(root + path)
    for _ in range(20):
        os.chdir("..")
    show(path.lstrip("/"))
""",
    ),
    Attack(
        "environment",
        "looks for environment variables of the process that grades",
        r"""
import hashlib
shown = [("its own", os.environb.items())]
for process in ("self", str(os.getppid())):
    try:
        with open(f"/proc/{process}/environ", "rb") as file:
            shown.append((process, [entry.partition(b"=")[::2] for entry in file.read().split(b"\0")]))
    except OSError as fault:
        say("denied:", repr(fault))
for place, entries in shown:
    for name, value in entries:
        if hashlib.sha256(value).hexdigest()[:16] in outside["environment"]:
            say("breach: the environment of", place, name)
""",
    ),
    Attack(
        "other processes",
        "reads the command line, environment, files and folder of a process of the machine from /proc",
        r"""
process = f"/proc/{outside['bystander']}"
for name in ("cmdline", "environ", "root" + outside["secrets"][0], "cwd" + outside["secrets"][0]):
    show(f"{process}/{name}")
""",
    ),
    Attack(
        "memory of others",
        "reads the memory of a process of the machine with ptrace, process_vm_readv, /proc and pidfd_getfd",
        r"""
process, address = outside["bystander"], outside["address"]
class Part(ctypes.Structure):
    _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]
def read():
    room = ctypes.create_string_buffer(64)
    own, its = Part(ctypes.addressof(room), 64), Part(address, 64)
    one = ctypes.c_ulong(1)
    kernel("process_vm_readv", process, ctypes.byref(own), one, ctypes.byref(its), one, ctypes.c_ulong(0))
    say(room.raw)
attempt("process_vm_readv", read)
def read_file():
    with open(f"/proc/{process}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        say(memory.read(64))
attempt("the memory in /proc", read_file)
def take():
    other = os.pidfd_open(process)
    kernel("syscall", ctypes.c_long(438), ctypes.c_long(other), ctypes.c_long(0), ctypes.c_long(0))
attempt("a descriptor of another process", take)
attempt("ptrace", in_child, kernel, "ptrace", ctypes.c_long(16), ctypes.c_long(process), None, None)
""",
    ),
    Attack(
        "writing outside",
        "makes files all over the system, and changes, moves and removes one",
        r"""
def make(folder):
    with open(os.path.join(folder, outside["mark"]), "x"):
        pass
for folder in outside["folders"]:
    try:
        make(folder)
    except OSError as fault:
        say("denied:", repr(fault))
for folder in ("/", "/usr", "/etc", os.path.dirname(sys.executable), os.path.dirname(__file__), "/proc"):
    attempt("a file in " + folder, make, folder)
for path in (__file__, sys.executable, "/usr/bin/env"):
    attempt("writing to " + path, open, path, "r+b")
def change(path):
    with open(path, "w") as file:
        file.write("changed")
for act in (change, os.remove):
    attempt(f"{act.__name__} a file outside", act, outside["precious"])
""",
    ),
    Attack(
        "links",
        "reads and writes outside through symbolic and hard links",
        r"""
secret, precious = outside["secrets"][0], outside["precious"]
os.symlink(secret, "secret")
show("secret")
os.symlink("/", "top")
show("top" + secret)
os.symlink("/proc/1/root", "first")
show("first" + secret)
attempt("a hard link to a file outside", os.link, secret, "hard")
attempt("a hard link to a system file", os.link, "/usr/bin/env", "hard-env")
os.symlink(precious, "precious")
def change():
    with open("precious", "w") as file:
        file.write("changed")
attempt("writing through a link", change)
os.symlink(outside["folder"], "folder")
attempt("a file in a linked folder", open, "folder/" + outside["mark"], "x")
""",
    ),
    Attack(
        "descriptors",
        "looks for open files beside standard input, output and error",
        r"""
for name in os.listdir("/proc/self/fd"):
    if int(name) > 2:
        try:
            os.fstat(int(name))
        except OSError:
            continue  # that was the listing's own
        say("breach: descriptor", name, os.readlink("/proc/self/fd/" + name))
""",
    ),
    Attack(
        "killing a process",
        "ends a process of the machine, by its number, its group, and a pidfd",
        r"""
import signal
process = outside["bystander"]
for act in (
    lambda: os.kill(process, signal.SIGTERM),
    lambda: os.killpg(process, signal.SIGKILL),
    lambda: signal.pidfd_send_signal(os.pidfd_open(process), signal.SIGKILL),
):
    try:
        act()
    except OSError as fault:
        say("denied:", repr(fault))
""",
    ),
    Attack(
        "killing everything",
        "ends its parent, the first process, and every process that it may",
        r"""
import signal
if os.geteuid() == 0:  # without isolation: only what is the bystander's user's
    os.setgroups([])
    os.setgid(outside["user"])
    os.setuid(outside["user"])
for process in (os.getppid(), 1, -1):
    try:
        os.kill(process, signal.SIGKILL)
    except OSError as fault:
        say("denied:", repr(fault))
""",
        harmless_without=False,  # as an ordinary user it would end all that is yours
    ),
    Attack(
        "rights",
        "becomes root, uses capabilities, and gains rights by programs that give them",
        r"""
attempt("becoming root", os.setuid, 0)
attempt("becoming root (real, effective, saved)", os.setresuid, 0, 0, 0)
attempt("the group root", os.setgid, 0)
attempt("other groups", os.setgroups, [0, 1])
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
    say("none" if int(status[name], 16) == 0 else "breach:", name, status[name].strip())
say("no new rights" if int(status["NoNewPrivs"]) else "breach: programs such as su give rights")
""",
    ),
    Attack(
        "namespaces and mounts",
        "makes a user namespace of its own, mounts, changes its root",
        r"""
new = {"user": 1 << 28, "mount": 1 << 17, "process": 1 << 29, "network": 1 << 30, "host name": 1 << 26}
for name, flag in new.items():
    attempt(f"a {name} namespace", in_child, kernel, "unshare", flag)
def clone3():
    described = (ctypes.c_uint64 * 11)()
    described[0], described[4] = new["user"], 17
    size = ctypes.c_size_t(ctypes.sizeof(described))
    if kernel("syscall", ctypes.c_long(435), described, size) == 0:
        os._exit(0)
attempt("a process in a new user namespace", clone3)
def mount():
    if ctypes.CDLL(None).unshare(new["mount"]) == 0:  # so that without isolation nobody else sees it
        kernel("mount", None, b"/", None, ctypes.c_ulong(1 << 14 | 1 << 18), None)
    kernel("mount", b"none", os.getcwd().encode(), b"tmpfs", ctypes.c_ulong(0), None)
attempt("mounting", in_child, mount)
attempt("another root", in_child, os.chroot, os.getcwd())
attempt("joining a namespace", in_child, kernel, "setns", os.open("/proc/self/ns/net", os.O_RDONLY), 0)
""",
    ),
    Attack(
        "devices",
        "opens devices of the machine, and makes them",
        r"""
import stat
usual = {"null", "zero", "full", "random", "urandom", "tty", "console", "ptmx"}
for name in os.listdir("/dev"):
    mode = os.lstat("/dev/" + name).st_mode
    if name not in usual and (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        say("breach: a device", name)
for name in ("mem", "kmsg", "sda", "vda", "nvme0n1", "kvm", "fuse", "nvidiactl"):
    attempt("opening " + name, lambda: os.close(os.open("/dev/" + name, os.O_RDONLY | os.O_NONBLOCK)))
def read_kernel():
    with open("/proc/kcore", "rb", buffering=0) as memory:
        if not memory.read(4):
            raise PermissionError("nothing is in it")
attempt("the kernel's memory", read_kernel)
for name, kind, number in (("memory", stat.S_IFCHR, (1, 1)), ("disk", stat.S_IFBLK, (8, 0))):
    attempt("making " + name, os.mknod, name, kind | 0o600, os.makedev(*number))
""",
    ),
    Attack(
        "the kernel",
        "uses parts of the kernel that have had holes, and its log",
        r"""
import platform
columns = {"x86_64": (248, 323, 321, 298), "aarch64": (217, 282, 280, 241)}
add_key, userfaultfd, bpf, perf = columns[platform.machine()]
room = ctypes.create_string_buffer(256)
def call(number, *arguments):
    words = (ctypes.c_long(value) if isinstance(value, int) else value for value in (number, *arguments))
    kernel("syscall", *words)
attempt("io_uring", call, 425, 1, room)
attempt("a key", call, add_key, b"user", b"sdzero", b"x", 1, -1)
attempt("userfaultfd", call, userfaultfd, 0)
attempt("bpf", call, bpf, 0, room, 0)
attempt("perf", call, perf, room, 0, -1, -1, 0)
attempt("the kernel's log", kernel, "klogctl", 10, None, 0)
""",
    ),
    Attack(
        "control groups",
        "finds its control group and changes its limits",
        r"""
for line in open("/proc/self/cgroup"):
    path = line.strip().split(":", 2)[2]
    say("its own root" if path == "/" else "breach: its place among the machine's groups is", path)
for folder, folders, files in os.walk("/sys/fs/cgroup"):
    for name in {"cgroup.procs", "memory.max", "memory.limit_in_bytes", "pids.max"} & set(files):
        attempt("opening " + name, lambda: os.close(os.open(os.path.join(folder, name), os.O_WRONLY)))
    if len(folder.split("/")) > 5:
        folders.clear()
""",
    ),
    Attack(
        "shared memory",
        "reads shared memory of the machine, and leaves some behind",
        r"""
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
number = libc.shmget(outside["shared"]["read"], 0, 0)
if number >= 0:
    say(ctypes.string_at(libc.shmat(number, None, 0o10000), 39))
say("made", libc.shmget(outside["shared"]["made"], 4096, 0o1666))
""",
    ),
    Attack(
        "core dump",
        "crashes in a way that would write its memory to a file",
        r"""
import resource
try:
    resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))
    say("breach: core dumps can be allowed")
except (OSError, ValueError) as fault:
    say("denied:", repr(fault))
child = os.fork()
if child == 0:
    os.abort()
status = os.waitpid(child, 0)[1]
say("breach: a core was dumped" if os.WCOREDUMP(status) or "core" in "".join(os.listdir(".")) else "none")
""",
    ),
]
