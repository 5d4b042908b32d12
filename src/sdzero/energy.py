"""Measured energy: joules between two moments, read from counters of the machine, and never estimated.

There are two sources, each used where it is there and may be read:

    nvml    the GPUs that the run uses: millijoules since the driver was loaded, by
            `nvmlDeviceGetTotalEnergyConsumption` (NVIDIA's NVML, Volta and newer; the package nvidia-ml-py)
    rapl    processors and, where they count it, their memory: microjoules in `energy_uj` of the kernel's
            powercap tree (RAPL, of Intel's and AMD's processors); often only root may read it

A counter counts its whole device, with whatever else runs there; fans, disks and power supplies are in none.
A source of which one counter cannot be read is left out: half a sum would look like a whole. A counter that
fails later ends the measuring, with a warning, and what it was to measure is None.

Of several processes the first of each machine reads that machine's processors, once, and the GPUs of all of
the run's processes there; what the machines measured is added up. A source that one machine lacks is used on
none. Imports no torch.
"""

import importlib
import logging
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sdzero import ranks

log = logging.getLogger(__name__)

NOT_MEASURED = "none"
POWERCAP = Path("/sys/class/powercap")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SECONDS_BETWEEN_READINGS = 10.0
"""RAPL's counters begin again at 0 after minutes of full load, so they are read in between."""
MOST_WATTS = 1000.0
"""More than any processor package takes: a counter that rose faster was set back, and did not wrap around."""


class CounterError(Exception):
    """A counter cannot be read or trusted any more; the text says which and why."""


class Counter(Protocol):
    """Joules since it was made. Raises CounterError."""

    def joules(self) -> float:
        """Read it."""
        ...


class RaplZone:
    """A zone of the powercap tree: `energy_uj` counts up to `max_energy_range_uj`, and on from 0.

    https://docs.kernel.org/power/powercap/powercap.html
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self._range = int((folder / "max_energy_range_uj").read_text())
        self._total = 0
        self._last, self._at = self._read(), clock()

    def joules(self) -> float:
        """Joules since it was made; to be read often enough that it cannot have wrapped around twice."""
        try:
            now, at = self._read(), self._clock()
        except (OSError, ValueError) as error:
            raise CounterError(f"{self._folder} cannot be read any more: {error}") from error
        seconds, step = at - self._at, now - self._last
        if MOST_WATTS * seconds * 1e6 > self._range:
            raise CounterError(
                f"{self._folder} was not read for {seconds:.0f} s, and may have wrapped around unseen"
            )
        if step < 0:
            step += self._range
        if not 0 <= step <= MOST_WATTS * (seconds + 1) * 1e6:
            raise CounterError(f"{self._folder} went from {self._last} to {now}: it was set back")
        self._total += step
        self._last, self._at = now, at
        return self._total / 1e6

    def _read(self) -> int:
        return int((self._folder / "energy_uj").read_text())


class NvmlDevice:
    """A GPU's own counter, by the device's UUID."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        self._nvml, self._uuid = nvml, uuid
        self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._first = self._last = self._read()

    def joules(self) -> float:
        """Joules since it was made."""
        try:
            now = self._read()
        except self._nvml.NVMLError as error:
            raise CounterError(f"{self._uuid} cannot be read any more: {error}") from error
        if now < self._last:
            raise CounterError(f"{self._uuid} went from {self._last} to {now} mJ: the driver was loaded anew")
        self._last = now
        return (now - self._first) / 1e3

    def _read(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))


class Found(NamedTuple):
    """The counters of a source, or why there are none."""

    counters: Sequence[Counter]
    why_not: str = ""


def rapl_zones(root: Path = POWERCAP, clock: Callable[[], float] = time.monotonic) -> Found:
    """The zones that add up: the packages, and the memory beside them.

    Cores and graphics are part of their package; a `psys` zone holds the packages again. A zone stands in the
    tree's first level under its full name, whichever zone it is a part of.
    """
    zones = []
    try:
        for folder in sorted(root.glob("intel-rapl:*")):
            name = (folder / "name").read_text().strip()
            if name.startswith("package") or name == "dram":
                zones.append(RaplZone(folder, clock))
    except (OSError, ValueError) as error:
        return Found((), f"its counters cannot be read ({error}); root can give leave to read energy_uj")
    return Found(zones) if zones else Found((), f"there is no package in {root}")


def nvml_devices(uuids: Sequence[str]) -> Found:
    """The counters of these GPUs; `nvmlInit` has been called if there are any."""
    if not uuids:
        return Found((), "no GPU is used")
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return Found((), "nvidia-ml-py is not installed (pip install 'sdzero[energy]')")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return Found((), f"NVML cannot be used ({error})")
    try:
        return Found([NvmlDevice(nvml, uuid) for uuid in uuids])
    except nvml.NVMLError as error:
        nvml.nvmlShutdown()
        return Found((), f"the GPUs' counters cannot be read ({error})")


class Spent(NamedTuple):
    """What an interval took, of the whole run; `joules` is None where the energy was not measured."""

    seconds: float
    joules: float | None


def total(joules: Iterable[float | None]) -> float | None:
    """The sum; None unless every part was measured: half a sum would look like a whole."""
    listed = list(joules)
    measured = [one for one in listed if one is not None]
    return sum(measured) if len(measured) == len(listed) else None


def added(parts: Iterable[Spent]) -> Spent:
    """Intervals one after another as one; not measured as a whole if one part was not."""
    listed = list(parts)
    return Spent(sum(part.seconds for part in listed), total(part.joules for part in listed))


def sources_of(parts: Iterable[str | None]) -> str:
    """What several parts were measured by, each kind once; `none` unless all of them were measured."""
    kinds = {NOT_MEASURED if part is None else part for part in parts}
    return NOT_MEASURED if not kinds or NOT_MEASURED in kinds else ", ".join(sorted(kinds))


class Meter:
    """Adds up this process's counters; `sources` is what is measured, the same in every process.

    One without counters, in a process that is not the first of its machine, measures 0: others count for it.
    """

    def __init__(self, counters: Sequence[Counter], sources: str) -> None:
        self._counters, self.sources = counters, sources
        self._fault: str | None = None
        self._lock = threading.Lock()

    def joules(self) -> float | None:
        """Joules of this process's counters since they were made; None once one of them has failed."""
        with self._lock:
            if self._fault is not None or self.sources == NOT_MEASURED:
                return None
            try:
                return sum(counter.joules() for counter in self._counters)
            except CounterError as fault:
                self._fault = str(fault)
                log.warning("energy is not measured from here on: %s", fault)
                return None


class Stopwatch:
    """Seconds, and joules of all machines, since it was made. Every process of a run makes it, and reads it,
    at the same places."""

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter
        self._started = time.monotonic()
        self._joules = meter.joules() if meter else None

    def read(self) -> Spent:
        """What the time since it was made took."""
        seconds = time.monotonic() - self._started
        if self._meter is None or self._meter.sources == NOT_MEASURED:
            return Spent(seconds, None)
        now = self._meter.joules()
        own = None if now is None or self._joules is None else now - self._joules
        return Spent(seconds, total(ranks.gather(own)))


def machine() -> str:
    """A word that is the same for all processes on this machine, in containers too, and no other's."""
    return BOOT_ID.read_text().strip() if BOOT_ID.is_file() else platform.node()


@contextmanager
def measuring(uuids: Sequence[str], powercap: Path = POWERCAP) -> Iterator[Meter]:
    """A meter for what the block does; `uuids` are the GPUs that this process uses.

    Every process of a run opens one at the same place.
    """
    here = machine()
    others: list[tuple[str, list[str]]] = ranks.gather((here, list(uuids)))
    is_first_here = [place for place, _ in others].index(here) == ranks.rank()
    found: dict[str, Found] = {}
    if is_first_here:
        all_here = dict.fromkeys(uuid for place, own in others if place == here for uuid in own)
        found = {"nvml": nvml_devices(list(all_here)), "rapl": rapl_zones(powercap)}
    named = ranks.gather([name for name, one in found.items() if one.counters] if is_first_here else None)
    firsts = [set(own) for own in named if own is not None]
    used = sorted(set.intersection(*firsts))
    counters = [counter for name in used for counter in (found[name].counters if is_first_here else ())]
    meter = Meter(counters, "+".join(used) or NOT_MEASURED)
    over = threading.Event()
    reader = threading.Thread(target=_read_often, args=(meter, over), name="energy", daemon=True)
    if counters:
        reader.start()
    try:
        yield meter
    finally:
        over.set()
        if counters:
            reader.join()
        if found and found["nvml"].counters:
            importlib.import_module("pynvml").nvmlShutdown()


def _read_often(meter: Meter, over: threading.Event) -> None:
    while not over.wait(SECONDS_BETWEEN_READINGS):
        if meter.joules() is None:
            return


def energy_text(sources: str) -> str:
    """One line for people: what of the machine was measured."""
    if sources == NOT_MEASURED:
        return "energy: not measured"
    return f"energy: measured by {sources}"
