"""The versions that the tests were run with, beside those that are installed. Imports no torch."""

import re

from sdzero.onprem.findings import Finding, warning

TESTED = {
    "torch": "2.13.0",
    "transformers": "5.19.0",
    "trl": "1.16.0",
    "accelerate": "1.15.0",
    "peft": "0.21.2",
}
"""As in constraints.txt: what every test of this version was run with."""

OLDEST = {"torch": "2.13", "transformers": "5.19", "trl": "1.16", "accelerate": "1.15", "peft": "0.21"}
"""As in pyproject.toml: what is older lacks what the code calls."""


def numbers_of(version: str) -> tuple[int, ...]:
    """The release numbers of a version: 2.13.0+cpu is (2, 13, 0)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def judge(name: str, version: str) -> Finding:
    """Whether a package's version is the tested one (ok), another one (a warning), or too old (failed)."""
    tested = TESTED.get(name)
    if tested is None or numbers_of(version) == numbers_of(tested):
        return Finding(name, True, version)
    upgrade = f"pip install '{name}=={tested}'"
    if numbers_of(version) < numbers_of(OLDEST[name]):
        return Finding(name, False, f"{version}; sdzero needs {OLDEST[name]} or newer", upgrade)
    return warning(
        name, f"{version}; the tests were run with {tested}", f"{upgrade}, if something is strange"
    )
