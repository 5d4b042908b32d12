"""Control groups: where one may be made, what is written to it, and a real one where that is allowed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sdzero.verify import cgroups
from sdzero.verify.cgroups import MEBIBYTE, PREFIX, ControlGroup, possible_groups

Found = list[tuple[int, dict[str, Path]]]

PROC = "22 1 0:20 / /proc rw - proc proc rw"
UNIFIED = "30 22 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate"
MEMORY = "35 31 0:32 / /sys/fs/cgroup/memory rw shared:9 master:2 - cgroup cgroup rw,memory"
PIDS = "39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids"
CPU = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
HYBRID = "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw"


@pytest.fixture
def candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str], list[str]], Found]:
    """The candidates for the contents of /proc/self/mountinfo and /proc/self/cgroup."""

    def moved(path: str | Path) -> Path:
        return Path(str(path).replace("/proc/self", str(tmp_path)))

    def find(mounts: list[str], memberships: list[str]) -> Found:
        for name, lines in (("mountinfo", mounts), ("cgroup", memberships)):
            (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
        with monkeypatch.context() as patch:
            patch.setattr(cgroups, "Path", moved)
            return cgroups._candidates()

    return find


def _both(folder: str) -> dict[str, Path]:
    return {"memory": Path(folder), "pids": Path(folder)}


def test_with_version_2_below_and_beside_the_own_group(candidates: Callable[..., Found]) -> None:
    assert candidates([PROC, UNIFIED], ["0::/user.slice/app.slice/shell.scope"]) == [
        (2, _both("/sys/fs/cgroup/user.slice/app.slice/shell.scope")),
        (2, _both("/sys/fs/cgroup/user.slice/app.slice")),
    ]


def test_nothing_lies_above_the_root(candidates: Callable[..., Found]) -> None:
    assert candidates([PROC, UNIFIED], ["0::/"]) == [(2, _both("/sys/fs/cgroup"))]


def test_with_version_1_each_controller_has_a_folder_of_its_own(candidates: Callable[..., Found]) -> None:
    memberships = ["9:name=systemd:/", "8:pids:/a/b", "4:memory:/c", "2:cpu,cpuacct:/d"]
    assert candidates([PROC, CPU, PIDS, MEMORY], memberships) == [
        (1, {"memory": Path("/sys/fs/cgroup/memory/c"), "pids": Path("/sys/fs/cgroup/pids/a/b")})
    ]


def test_controllers_that_share_a_mount(candidates: Callable[..., Found]) -> None:
    shared = "35 31 0:32 / /groups rw - cgroup cgroup rw,pids,memory"
    assert candidates([shared], ["4:pids,memory:/c"]) == [(1, _both("/groups/c"))]


def test_of_both_versions_the_second_is_tried_first(candidates: Callable[..., Found]) -> None:
    found = candidates([MEMORY, PIDS, HYBRID], ["8:pids:/", "4:memory:/a", "0::/b"])
    assert [version for version, _ in found] == [2, 2, 1]
    assert found[0][1] == _both("/sys/fs/cgroup/unified/b")
    assert found[2][1] == {"memory": Path("/sys/fs/cgroup/memory/a"), "pids": Path("/sys/fs/cgroup/pids")}


@pytest.mark.parametrize(
    ("mounts", "memberships"),
    [
        ([PROC], ["0::/"]),
        ([PROC, UNIFIED], []),
        ([PROC, MEMORY], ["4:memory:/", "8:pids:/"]),
        ([PROC, MEMORY, PIDS], ["4:memory:/"]),
        ([PROC, CPU], ["2:cpu,cpuacct:/"]),
    ],
)
def test_without_both_controllers_there_is_none(
    candidates: Callable[..., Found], mounts: list[str], memberships: list[str]
) -> None:
    assert candidates(mounts, memberships) == []


def test_a_path_may_hold_colons_and_commas(candidates: Callable[..., Found]) -> None:
    found = candidates([UNIFIED], ["0::/a:b/c,d"])
    assert found[0] == (2, _both("/sys/fs/cgroup/a:b/c,d"))


def test_a_mount_that_shows_a_part_of_the_tree(candidates: Callable[..., Found]) -> None:
    # As in a container: what is mounted is the container's own group, and the paths are the machine's.
    mounts = [
        "35 31 0:32 /docker/ab12 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        "39 31 0:36 /docker/ab12 /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids",
    ]
    assert candidates(mounts, ["4:memory:/docker/ab12/own", "8:pids:/docker/ab12"]) == [
        (1, {"memory": Path("/sys/fs/cgroup/memory/own"), "pids": Path("/sys/fs/cgroup/pids")})
    ]
    (below, *_) = candidates(
        ["30 22 0:26 /docker/ab12 /sys/fs/cgroup rw - cgroup2 cgroup2 rw"], ["0::/docker/ab12/own"]
    )
    assert below == (2, _both("/sys/fs/cgroup/own"))


def test_a_group_outside_what_is_mounted_is_no_candidate(candidates: Callable[..., Found]) -> None:
    assert candidates([UNIFIED], ["0::/../other"]) == []


# ---- what is written, on plain files ----


@pytest.fixture
def second(tmp_path: Path) -> ControlGroup:
    for name in ("memory.max", "memory.swap.max", "pids.max", "cgroup.procs"):
        (tmp_path / name).touch()
    return ControlGroup(2, {"memory": tmp_path, "pids": tmp_path})


@pytest.fixture
def first(tmp_path: Path) -> ControlGroup:
    for name in ("memory/memory.limit_in_bytes", "memory/memory.memsw.limit_in_bytes", "pids/pids.max"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return ControlGroup(1, {"memory": tmp_path / "memory", "pids": tmp_path / "pids"})


def test_limits_of_version_2(second: ControlGroup, tmp_path: Path) -> None:
    second.limit(100, 7)
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    size = str(100 * MEBIBYTE)
    assert written == {"memory.max": size, "memory.swap.max": "0", "pids.max": "7", "cgroup.procs": ""}
    assert second.doors == [str(tmp_path / "cgroup.procs")]


def test_limits_of_version_1(first: ControlGroup, tmp_path: Path) -> None:
    first.limit(100, 7)
    memory, size = tmp_path / "memory", str(100 * MEBIBYTE)
    assert (memory / "memory.limit_in_bytes").read_text() == size
    assert (memory / "memory.memsw.limit_in_bytes").read_text() == size, "memory and swap together"
    assert (tmp_path / "pids" / "pids.max").read_text() == "7"
    assert first.doors == [str(memory / "cgroup.procs"), str(tmp_path / "pids" / "cgroup.procs")]


def test_limits_are_written_when_they_change(second: ControlGroup, tmp_path: Path) -> None:
    file = tmp_path / "pids.max"
    second.limit(100, 7)
    file.write_text("untouched")
    second.limit(100, 7)
    assert file.read_text() == "untouched"
    second.limit(100, 8)
    assert file.read_text() == "8"
    second.limit(101, 8)
    assert (tmp_path / "memory.max").read_text() == str(101 * MEBIBYTE)


def test_limits_that_could_not_be_set_are_tried_again(second: ControlGroup, tmp_path: Path) -> None:
    (tmp_path / "pids.max").unlink()
    (tmp_path / "pids.max").mkdir()
    for _ in range(2):
        with pytest.raises(OSError, match="directory"):
            second.limit(100, 7)
    (tmp_path / "pids.max").rmdir()
    second.limit(100, 7)
    assert (tmp_path / "pids.max").read_text() == "7"


def test_kills_for_want_of_memory_are_counted(
    second: ControlGroup, first: ControlGroup, tmp_path: Path
) -> None:
    events = "low 0\nhigh 3\nmax 9\noom 4\noom_kill 2\noom_group_kill 1\n"
    (tmp_path / "memory.events").write_text(events)
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 5\n")
    assert second.out_of_memory() == 2
    assert first.out_of_memory() == 5


def test_processes_that_stay_are_told(
    second: ControlGroup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "EMPTY_WITHIN_SECONDS", 0.05)
    (tmp_path / "cgroup.procs").write_text("12\n345\n")
    assert second.processes() == [12, 345]
    assert not second.wait_for_others_than(12)
    (tmp_path / "cgroup.procs").write_text("12\n")
    assert second.wait_for_others_than(12)


def test_groups_of_processes_that_are_gone_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = {
        f"{PREFIX}{ended.pid}-judge": False,
        f"{PREFIX}{os.getpid()}-judge": True,
        f"{PREFIX}other": True,
        f"other-{ended.pid}-judge": True,
        f"{PREFIX}{ended.pid}": False,
    }
    for name in names:
        (tmp_path / name).mkdir()
    busy = tmp_path / f"{PREFIX}{ended.pid}-busy"
    busy.mkdir()
    (busy / "file").touch()
    cgroups._remove_stale(tmp_path)
    assert {name: (tmp_path / name).exists() for name in names} == names
    assert busy.exists()
    cgroups._remove_stale(tmp_path / "not there")


def test_where_none_may_be_made_none_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder without the files of the controllers, and one that does not exist.
    no_file = tmp_path / "file"
    no_file.touch()
    found: Found = [(2, _both(str(tmp_path / "not there"))), (1, _both(str(no_file)))]
    monkeypatch.setattr(cgroups, "_candidates", lambda: found)
    assert list(possible_groups("test")) == []
    assert list(tmp_path.iterdir()) == [no_file]


# ---- a real group ----

JOIN = """
import sys
for door in sys.argv[1].split(":"):
    with open(door, "w") as file:
        file.write("0")
print("joined", flush=True)
sys.stdin.readline()
"""
HOG = "held = [bytearray(b'x' * 1_000_000) for _ in range(200)]\nprint('enough')\n"
FORK = """
import os
waiting, going = os.pipe()
children, refused = [], False
for _ in range(3):
    try:
        child = os.fork()
    except BlockingIOError:
        refused = True
        break
    if child == 0:
        os.close(going)
        os.read(waiting, 1)
        os._exit(0)
    children.append(child)
os.close(going)
for child in children:
    os.waitpid(child, 0)
sys.exit(refused)
"""


@pytest.fixture
def group() -> Iterator[ControlGroup]:
    """The first group that a process may join; all are closed at the end."""
    made: list[ControlGroup] = []
    try:
        for one in possible_groups("test"):
            made.append(one)
            if _joining(one, "").wait() == 0:
                yield one
                break
        else:
            pytest.skip("no control group may be made here")
    finally:
        for one in made:
            one.close()


def _joining(group: ControlGroup, then: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", JOIN.rpartition("sys.stdin")[0] + then, ":".join(group.doors)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _wait_until(true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 10
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_a_real_group_holds_the_processes_that_join(group: ControlGroup) -> None:
    with _joining(group, "sys.stdin.readline()") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        assert group.processes() == [process.pid]
        assert group.wait_for_others_than(process.pid)
        process.communicate("go\n", timeout=10)
    _wait_until(lambda: group.processes() == [])


def test_a_real_group_ends_what_needs_too_much_memory(group: ControlGroup) -> None:
    group.limit(64, 16)
    assert group.out_of_memory() == 0
    with _joining(group, HOG) as process:
        said, _ = process.communicate(timeout=30)
    assert said == "joined\n"
    assert process.returncode == -9
    assert group.out_of_memory() == 1
    _wait_until(lambda: group.processes() == [])
    group.limit(400, 16)
    with _joining(group, HOG) as process:
        said, _ = process.communicate(timeout=30)
    assert said == "joined\nenough\n"
    assert group.out_of_memory() == 1


def test_a_real_group_counts_processes(group: ControlGroup) -> None:
    for most, fits in ((3, False), (4, True)):
        group.limit(256, most)
        with _joining(group, FORK) as process:
            process.communicate(timeout=30)
        assert (process.returncode == 0) == fits


def test_a_real_group_is_gone_when_it_is_closed(group: ControlGroup) -> None:
    assert all(folder.is_dir() for folder in group.folders.values())
    group.close()
    assert not any(folder.exists() for folder in group.folders.values())


def test_two_real_groups_of_one_process_differ(group: ControlGroup) -> None:
    # Several sandboxes of one process each have their own, whatever they are called.
    groups = possible_groups("test")
    try:
        other = next(groups)
        assert not set(other.folders.values()) & set(group.folders.values())
        other.close()
        assert all(folder.is_dir() for folder in group.folders.values())
    finally:
        for left in groups:
            left.close()
