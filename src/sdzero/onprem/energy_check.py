"""`sdzero doctor` on energy: which counters a run's joules would come from."""

from collections.abc import Iterator

from sdzero.energy import nvml_devices, rapl_zones
from sdzero.onprem.findings import Finding, Subject


def energy(subject: Subject) -> Iterator[Finding]:
    """What can be measured here. That nothing can is no fault: the ledger then says so."""
    uuids: list[str] = []
    if subject.recipe is not None and "gpu" not in subject.failed:
        from sdzero.devices import gpus_used

        uuids = gpus_used(subject.recipe)
    found = {"nvml": nvml_devices(uuids), "rapl": rapl_zones()}
    measured = [name for name, one in found.items() if one.counters]
    missing = [f"{name}: {one.why_not}" for name, one in found.items() if not one.counters]
    detail = f"measured by {'+'.join(measured)}" if measured else "not measured"
    yield Finding("energy", True, "; ".join([detail, *missing]))
