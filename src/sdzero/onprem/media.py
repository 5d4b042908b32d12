"""A bundle on media: cut into parts of one size, each with its sum, and put together again.

The parts, one after the other, are a tar archive, so that the other side needs no more than `cat`, `tar` and
`sha256sum`.
"""

import io
import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from sdzero.errors import UserError
from sdzero.onprem.bundle_check import SUMS_NAME, find_faults, read_sums
from sdzero.onprem.bundle_files import CHUNK, sum_of

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
MOST_PARTS = 10_000
"""With more, the names would not sort as the parts follow each other, and `cat` takes them as they sort."""
README_NAME = "README.txt"
README = """\
This is a bundle of sdzero in parts. With nothing installed but the usual tools:

    sha256sum -c {sums}
    cat {name}.tar.* | tar -xf -
    cd {name} && sh install.sh

All parts must be in one folder first. Where sdzero is installed, this does the same:

    sdzero bundle join FOLDER --to {name}
"""


def parse_size(text: str) -> int:
    """Bytes of a size such as `4G`. Units are powers of ten, so that `4G` fits on FAT32, whose limit is 2^32.

    Raises UserError for anything else.
    """
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    if found is None or int(found[1]) == 0:
        raise UserError(f"`{text}` is no size", "--split", "write it like 4G or 700M")
    return int(found[1]) * UNITS[found[2]]


class _Parts(io.RawIOBase):
    """A stream that is written into numbered files of at most `size` bytes."""

    def __init__(self, stem: Path, size: int) -> None:
        self._stem, self._size = stem, size
        self._part: IO[bytes] | None = None
        self._room, self.files = 0, list[Path]()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        written = len(view)
        while view:
            if self._room == 0:
                self._next()
            assert self._part is not None
            piece, view = view[: self._room], view[self._room :]
            self._part.write(piece)
            self._room -= len(piece)
        return written

    def _next(self) -> None:
        self.finish()
        if len(self.files) == MOST_PARTS:
            raise UserError(
                f"the bundle would have more than {MOST_PARTS:,} parts", "--split", "name a larger size"
            )
        file = self._stem.with_name(f"{self._stem.name}.{len(self.files):04d}")
        self._part, self._room = file.open("wb"), self._size
        self.files.append(file)

    def finish(self) -> None:
        """Make what was written durable."""
        if self._part is not None:
            self._part.flush()
            os.fsync(self._part.fileno())
            self._part.close()
            self._part = None


def split(bundle: Path, size: int) -> Path:
    """Write the parts of a bundle into a folder beside it, `NAME.parts`, in place of older ones; gives it.

    The same bundle gives the same parts: dates and owners are left out. Raises UserError if the folder there
    is none of parts.
    """
    folder = bundle.with_name(f"{bundle.name}.parts")
    if folder.exists() and not (folder / README_NAME).is_file():
        raise UserError("there is something else here already", str(folder), "move it away")
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    parts = _Parts(partial / f"{bundle.name}.tar", size)
    with tarfile.open(fileobj=parts, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted([*read_sums(bundle), SUMS_NAME]):
            entry = archive.gettarinfo(bundle / path, arcname=f"{bundle.name}/{path}")
            entry.uid = entry.gid = entry.mtime = 0
            entry.uname = entry.gname = ""
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            with (bundle / path).open("rb") as content:
                archive.addfile(entry, content)
    parts.finish()
    lines = [f"{sum_of(file)}  {file.name}\n" for file in parts.files]
    (partial / SUMS_NAME).write_text("".join(lines), encoding="utf-8")
    (partial / README_NAME).write_text(README.format(sums=SUMS_NAME, name=bundle.name), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return folder


def check_parts(folder: Path) -> list[Path]:
    """The parts in order, after each was found to be as it was written. Raises UserError that names those
    that are not."""
    sums = read_sums(folder)
    wrong = []
    for name, sha256 in sums.items():
        if not (folder / name).is_file():
            wrong.append(f"{name} is missing")
        elif sum_of(folder / name) != sha256:
            wrong.append(f"{name} has changed")
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(sums)} parts cannot be used: {', '.join(wrong)}",
            str(folder),
            "copy these parts again",
        )
    return [folder / name for name in sorted(sums)]


def join(parts: Path, to: Path) -> None:
    """Put a bundle together from its parts, in the new folder `to`.

    Raises UserError for a part or a file that is not as it was, and if there is something at `to`.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError("there is something here already", str(to), "name a new folder in --to")
    files = check_parts(parts)
    partial = to.with_name(f"{to.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with tarfile.open(fileobj=_Joined(files), mode="r|") as archive:
            for entry in archive:
                _extract(archive, entry, partial)
    except tarfile.TarError as error:
        raise UserError(
            f"what is here is no archive in parts ({error})",
            str(parts),
            f"name the folder of the parts, NAME.parts, which has a {README_NAME}",
        ) from error
    faults = find_faults(partial)
    if faults:
        named = ", ".join(f"{fault.path} is {fault.kind}" for fault in faults)
        raise UserError(f"the bundle in these parts is not whole: {named}", str(parts), "make the parts anew")
    if to.exists():
        to.rmdir()
    os.replace(partial, to)


def _extract(archive: tarfile.TarFile, entry: tarfile.TarInfo, folder: Path) -> None:
    """One file of the archive, below the folder of the bundle's name that all of them are in."""
    place = PurePosixPath(entry.name)
    content = archive.extractfile(entry) if entry.isfile() else None
    if content is None or place.is_absolute() or ".." in place.parts or len(place.parts) < 2:
        raise UserError(f"the archive holds `{entry.name}`, which no bundle has", None, "make the parts anew")
    to = folder.joinpath(*place.parts[1:])
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("wb") as file:
        shutil.copyfileobj(content, file, CHUNK)
    to.chmod(0o755 if entry.mode & 0o100 else 0o644)


class _Joined(io.RawIOBase):
    """The parts as one stream to read."""

    def __init__(self, files: list[Path]) -> None:
        self._pieces = self._read_all(files)
        self._rest = memoryview(b"")

    @staticmethod
    def _read_all(files: list[Path]) -> Iterator[bytes]:
        for file in files:
            with file.open("rb") as part:
                while piece := part.read(CHUNK):
                    yield piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        target = memoryview(buffer)
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(target), len(self._rest))
        target[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
