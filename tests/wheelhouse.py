"""Tiny wheels, and a folder of them that pip takes for its index; the only real package is pip."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from shutil import copy

import pytest

FAKE_COMMAND = """
import os, sys

def main():
    print("sdzero", *sys.argv[1:])
    with open(os.environ["FAKE_LOG"], "a") as log:
        print(os.getcwd(), *sys.argv[1:], file=log)
    if sys.argv[1] == "run":
        print("results: here")
    return int(sys.argv[1] == os.environ.get("FAKE_FAILS"))
"""


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tag: str = "py3-none-any",
    needs: Sequence[str] = (),
    headers: Sequence[str] = ("License-Expression: MIT",),
    content: Mapping[str, str] | None = None,
    info: Mapping[str, str] | None = None,
) -> Path:
    """Write a wheel; `info` are files of its `.dist-info`, `content` its modules."""
    stem = f"{name.replace('-', '_')}-{version}"
    metadata = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *headers]
    metadata += [f"Requires-Dist: {one}" for one in needs]
    files = {f"{name.replace('-', '_')}.py": "", **(content or {})}
    files |= {
        f"{stem}.dist-info/{path}": text
        for path, text in {
            "METADATA": "\n".join(metadata) + "\n",
            "WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n",
            **(info or {}),
        }.items()
    }
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        rows.append(f"{path},sha256={digest},{len(text.encode())}\n")
    record = f"{stem}.dist-info/RECORD"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for path, text in {**files, record: "".join(rows) + f"{record},,\n"}.items():
            wheel.writestr(zipfile.ZipInfo(path), text)  # without today's date: the same bytes each time
    return file


def fake_sdzero(folder: Path, needs: Sequence[str] = ("toy>=1",)) -> Path:
    """A wheel of sdzero whose command notes what it is asked, and where."""
    return make_wheel(
        folder,
        "sdzero",
        needs=needs,
        headers=("License-Expression: Apache-2.0",),
        content={"fake_command.py": FAKE_COMMAND},
        info={
            "entry_points.txt": "[console_scripts]\nsdzero = fake_command:main\n",
            "licenses/LICENSE": "text\n",
        },
    )


def make_wheelhouse(folder: Path) -> Path:
    """What the fake sdzero needs: `toy`, which needs `native`; of that there are two builds; and pip."""
    make_wheel(
        folder, "toy", needs=["native[fast]>=1; sys_platform == 'linux'", "absent; sys_platform == 'win32'"]
    )
    for glibc in ("17", "34"):
        tag = f"cp311-cp311-manylinux_2_{glibc}_x86_64"
        make_wheel(folder, "native", tag=tag, headers=("Classifier: License :: OSI Approved :: BSD License",))
    with resources.as_file(resources.files("ensurepip") / "_bundled") as bundled:
        for file in bundled.glob("pip-*.whl"):
            copy(file, folder)
    return folder


def use_wheelhouse(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Set pip up to take packages from the folder alone, pip itself in the version that is there."""
    (pip,) = folder.glob("pip-*.whl")
    patch.setattr("sdzero.onprem.wheels.pip_version", lambda: pip.name.split("-")[1])
    patch.setenv("PIP_NO_INDEX", "1")
    patch.setenv("PIP_FIND_LINKS", str(folder))
    patch.setenv("PIP_CONFIG_FILE", "/dev/null")
