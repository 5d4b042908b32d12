"""Energy: joules from counters as they are, across wrap-arounds, and None with a warning where they fail."""

import logging
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from sdzero import energy, ranks
from sdzero.energy import (
    CounterError,
    Meter,
    NvmlDevice,
    RaplZone,
    Spent,
    Stopwatch,
    added,
    energy_text,
    measuring,
    nvml_devices,
    rapl_zones,
)
from sdzero.ledger import Ledger

RANGE = 262_143_328_850
"""What an Intel server says in max_energy_range_uj."""


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def zone(root: Path, number: str, name: str, microjoules: int) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{RANGE}\n")
    set_to(folder, microjoules)
    return folder


def set_to(folder: Path, microjoules: int) -> None:
    (folder / "energy_uj").write_text(f"{microjoules}\n")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two packages, one with memory, and zones that are parts of others or hold others."""
    root = tmp_path / "powercap"
    zone(root, "0", "package-0", 5_000_000)
    zone(root, "0:0", "core", 1_000_000)
    zone(root, "0:1", "dram", 2_000_000)
    zone(root, "1", "package-1", 7_000_000)
    zone(root, "2", "psys", 9_000_000)
    return root


def test_packages_and_memory_add_up_and_nothing_is_counted_twice(tree: Path) -> None:
    found = rapl_zones(tree)
    assert len(found.counters) == 3
    for number, more in (
        ("0", 1_000_000),
        ("0:0", 600_000),
        ("0:1", 250_000),
        ("1", 500_000),
        ("2", 2_000_000),
    ):
        folder = tree / f"intel-rapl:{number}"
        set_to(folder, int((folder / "energy_uj").read_text()) + more)
    assert sum(one.joules() for one in found.counters) == pytest.approx(1.0 + 0.25 + 0.5)


def test_a_counter_that_wraps_around_goes_on(tree: Path, clock: Clock) -> None:
    folder = tree / "intel-rapl:0"
    set_to(folder, RANGE - 3_000_000)
    counter = RaplZone(folder, clock)
    for step, total in ((2_000_000, 5.0), (9_000_000, 12.0)):
        clock.now += 10
        set_to(folder, step)
        assert counter.joules() == pytest.approx(total)


def test_a_counter_that_was_set_back_is_not_taken_for_one_that_wrapped(tree: Path, clock: Clock) -> None:
    folder = tree / "intel-rapl:0"
    set_to(folder, 200_000_000_000)
    counter = RaplZone(folder, clock)
    clock.now += 10
    set_to(folder, 1_000)  # 62 kJ in ten seconds, if it had wrapped
    with pytest.raises(CounterError, match="was set back"):
        counter.joules()


def test_a_counter_that_may_have_wrapped_twice_is_not_trusted(tree: Path, clock: Clock) -> None:
    counter = RaplZone(tree / "intel-rapl:0", clock)
    clock.now += 300
    with pytest.raises(CounterError, match="not read for 300 s"):
        counter.joules()


@pytest.mark.parametrize("fault", ["unreadable", "no number", "gone"])
def test_a_zone_that_cannot_be_read_leaves_the_whole_source_out(tree: Path, fault: str) -> None:
    file = tree / "intel-rapl:1/energy_uj"
    file.unlink()
    if fault == "unreadable":
        file.mkdir()  # root may read any file, but no folder
    elif fault == "no number":
        file.write_text("much\n")
    found = rapl_zones(tree)
    assert not found.counters
    assert "cannot be read" in found.why_not
    assert "no package" in rapl_zones(tree / "nowhere").why_not


class FakeNvml(types.ModuleType):
    """nvidia-ml-py with two GPUs, whose counters are set by hand."""

    class NVMLError(Exception):
        """As the library's."""

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = {"GPU-a": 1_000, "GPU-b": 50_000}
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        if uuid not in self.millijoules:
            raise self.NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        if handle not in self.millijoules:
            raise self.NVMLError("GPU is lost")
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_gpus_are_counted_from_when_the_counting_began(nvml: FakeNvml) -> None:
    first, second = nvml_devices(["GPU-a", "GPU-b"]).counters
    nvml.millijoules |= {"GPU-a": 3_500, "GPU-b": 50_250}
    assert (first.joules(), second.joules()) == (2.5, 0.25)


def test_why_gpus_are_not_counted(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nvml_devices([]).why_not == "no GPU is used"
    assert "Not Found" in nvml_devices(["GPU-a", "GPU-strange"]).why_not
    assert nvml.open == 0
    assert not nvml_devices(["GPU-a", "GPU-strange"]).counters
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install 'sdzero[energy]'" in nvml_devices(["GPU-a"]).why_not


def test_a_driver_that_was_loaded_anew(nvml: FakeNvml) -> None:
    device = NvmlDevice(nvml, "GPU-b")
    nvml.millijoules["GPU-b"] = 10
    with pytest.raises(CounterError, match="loaded anew"):
        device.joules()


def test_a_device_that_disappears_ends_the_measuring_with_its_reason(
    nvml: FakeNvml, tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with measuring(["GPU-a"], tree) as meter:
        assert meter.sources == "nvml+rapl"
        whole, broken = Stopwatch(meter), Stopwatch(meter)
        nvml.millijoules["GPU-a"] += 4_000
        assert whole.read().joules == pytest.approx(4.0)
        del nvml.millijoules["GPU-a"]
        with caplog.at_level(logging.WARNING):
            assert broken.read().joules is None
            assert Stopwatch(meter).read().joules is None, "what rapl still counts is half of it"
        assert [record.message for record in caplog.records] == [
            "energy is not measured from here on: GPU-a cannot be read any more: GPU is lost"
        ]
    assert nvml.open == 0


def test_the_ledger_says_what_was_measured_and_by_what(tree: Path, tmp_path: Path) -> None:
    path, folder = tmp_path / "ledger.jsonl", tree / "intel-rapl:1"
    with measuring([], tree) as meter:
        ledger = Ledger(path, meter, devices=3)
        for key, more in (("a", 1_500_000), ("b", 500_000)):
            watch = ledger.start()
            set_to(folder, int((folder / "energy_uj").read_text()) + more)
            spent = watch.read()
            ledger.record("srt", key, seconds=spent.seconds, joules=spent.joules)
    for read in (ledger, Ledger(path)):
        assert read.joules("srt") == pytest.approx(2.0)
        assert read.budget_json()["energy"] == "rapl"
        stage = read.by_stage()["srt"]
        assert stage["device_seconds"] == pytest.approx(3 * stage["seconds"])
    Ledger(path).record("distill", "a", seconds=1.0)
    again = Ledger(path)
    assert again.energy() == "none"
    assert again.energy(["srt"]) == "rapl"
    assert again.joules("srt", "distill") is None
    again.record("srt", "a", seconds=1.0)
    assert again.energy(["srt"]) == "none", "what replaced it was not measured"


def test_a_ledger_of_before_counts_one_device(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text('{"stage": "srt", "key": "a", "responses": 0, "seconds": 2.5, "joules": null}\n')
    assert Ledger(path).by_stage()["srt"]["device_seconds"] == 2.5


class Processes:
    """What `ranks.gather` gives in one of several processes, from what each of them would give."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rank: int, answers: list[list[Any]]) -> None:
        self.rank, self.answers = rank, answers
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "gather", self.gather)

    def gather(self, value: Any) -> list[Any]:
        everyone = list(self.answers.pop(0))
        everyone[self.rank] = value
        return everyone


def test_each_machine_is_counted_once_by_the_first_of_its_processes(
    nvml: FakeNvml, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "machine", lambda: "here")
    places = [("there", ["GPU-x"]), ("here", ["GPU-a"]), ("here", ["GPU-b"])]
    named = [["nvml", "rapl"], ["nvml", "rapl"], None]
    Processes(monkeypatch, 1, [places, named, [5.0, None, 0.0]])
    with measuring(["GPU-a"], tree) as meter:
        watch = Stopwatch(meter)
        nvml.millijoules |= {"GPU-a": 2_000, "GPU-b": 51_000}
        assert watch.read().joules == pytest.approx(5.0 + 1.0 + 1.0), (
            "the GPUs of both, and the other machine"
        )

    Processes(monkeypatch, 2, [places, named, [5.0, 2.0, None]])
    with measuring(["GPU-b"], tree) as meter:
        watch = Stopwatch(meter)
        nvml.millijoules["GPU-b"] += 1_000
        assert watch.read().joules == pytest.approx(7.0), "the second process of a machine adds nothing"


def test_what_one_machine_lacks_is_measured_on_none(
    nvml: FakeNvml, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "machine", lambda: "here")
    places = [("here", ["GPU-a"]), ("there", ["GPU-x"])]
    Processes(monkeypatch, 0, [places, [None, ["nvml"]], [None, 3.0]])
    with measuring(["GPU-a"], tree) as meter:
        assert meter.sources == "nvml"
        watch = Stopwatch(meter)
        set_to(tree / "intel-rapl:0", 6_000_000)
        assert watch.read().joules == pytest.approx(3.0)


def test_without_counters_nothing_is_measured_and_nobody_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with measuring([], tmp_path) as meter:
        assert meter.sources == "none"
        monkeypatch.setattr(
            ranks, "gather", lambda value: pytest.fail("a run without energy waits for nobody")
        )
        spent = Stopwatch(meter).read()
    assert spent.joules is None
    assert spent.seconds >= 0
    assert energy_text("none") == "energy: not measured"
    assert energy_text("nvml") == "energy: measured by nvml"


def test_intervals_add_up_if_all_were_measured() -> None:
    assert added([Spent(1.0, 2.0), Spent(0.5, 3.0)]) == Spent(1.5, 5.0)
    assert added([Spent(1.0, 2.0), Spent(0.5, None)]) == Spent(1.5, None)
    assert Stopwatch(None).read().joules is None
    assert Meter([], "rapl").joules() == 0
