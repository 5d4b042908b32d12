"""A bundle's sums, and a bundle in parts: cut, checked, put together, also with the usual tools alone."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sdzero.cli import app
from sdzero.errors import UserError
from sdzero.onprem import bundle_check, media
from sdzero.onprem.bundle_check import Fault, find_faults, read_sums, write_sums
from sdzero.onprem.bundle_files import sum_of
from sdzero.onprem.media import join, parse_size, split


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    for name, content in {
        "install.sh": b"#!/bin/sh\n",
        "wheels/a b.whl": b"\x00" * 5000,
        "models/m/weights": bytes(range(256)) * 40,
        "empty": b"",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "install.sh").chmod(0o755)
    write_sums(folder)
    return folder


# ---- the list of sums ----


def test_the_list_is_one_that_sha256sum_reads(bundle: Path) -> None:
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=bundle, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": OK") == 4
    assert find_faults(bundle) == []


def test_every_wrong_missing_and_extra_file_is_named(bundle: Path) -> None:
    weights = bundle / "models/m/weights"
    changed = bytearray(weights.read_bytes())
    changed[5000] ^= 1
    weights.write_bytes(changed)
    (bundle / "empty").unlink()
    (bundle / "wheels/new.whl").write_text("")
    (bundle / "link").symlink_to("/etc/passwd")
    (bundle / "venv/bin").mkdir(parents=True)
    (bundle / "venv/bin/python").write_text("made by install.sh")
    expected = {
        Fault("models/m/weights", "wrong"),
        Fault("empty", "missing"),
        Fault("wheels/new.whl", "extra"),
        Fault("link", "extra"),
    }
    assert set(find_faults(bundle)) == expected


def test_a_link_in_place_of_a_file_is_wrong(bundle: Path, tmp_path: Path) -> None:
    (bundle / "empty").rename(tmp_path / "outside")
    (bundle / "empty").symlink_to(tmp_path / "outside")
    assert find_faults(bundle) == [Fault("empty", "wrong")]


@pytest.mark.parametrize("line", ["nonsense", f"{'0' * 64}  ../outside", f"{'0' * 64}  /etc/passwd"])
def test_a_list_that_leads_out_or_is_broken_is_refused(bundle: Path, line: str) -> None:
    with (bundle / "SHA256SUMS").open("a") as sums:
        sums.write(line + "\n")
    with pytest.raises(UserError, match="list of sums is damaged") as refused:
        read_sums(bundle)
    assert str(refused.value.where).endswith("SHA256SUMS:5")


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe"])
def test_a_list_that_is_empty_or_no_text_is_refused(bundle: Path, content: bytes) -> None:
    (bundle / "SHA256SUMS").write_bytes(content)
    with pytest.raises(UserError, match="list of sums is damaged"):
        find_faults(bundle)


def test_a_file_that_cannot_be_read_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(file: Path) -> str:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(bundle_check, "sum_of", refused)
    with pytest.raises(UserError, match="Permission denied") as error:
        find_faults(bundle)
    assert str(error.value.where).startswith(str(bundle))


def test_a_name_may_hold_any_mark_but_a_line_break(bundle: Path) -> None:
    (bundle / "one\u2028two").write_text("text")
    write_sums(bundle)
    assert find_faults(bundle) == []


def test_what_is_no_archive_is_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no archive in parts") as refused:
        join(bundle, tmp_path / "other")
    assert "NAME.parts" in str(refused.value.todo)
    assert not (tmp_path / "other").exists()


def test_the_command_verifies(bundle: Path) -> None:
    result = CliRunner().invoke(app, ["bundle", "verify", str(bundle)])
    assert result.exit_code == 0, result.output
    assert "4 files, all as they were made" in result.output
    (bundle / "empty").write_text("no longer")
    result = CliRunner().invoke(app, ["bundle", "verify", str(bundle)])
    assert result.exit_code == 1
    assert "wrong: empty" in result.output
    result = CliRunner().invoke(app, ["bundle", "verify", str(bundle), "--json"])
    assert result.exit_code == 1
    found = json.loads(result.output)
    assert found["whole"] is False
    assert found["faults"] == [{"path": "empty", "kind": "wrong"}]
    result = CliRunner().invoke(app, ["bundle", "verify", str(bundle / "models")])
    assert result.exit_code == 1
    assert "this is no bundle" in result.stderr


def test_the_command_makes_unless_it_is_told_otherwise(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bundle", "--help"])
    assert result.exit_code == 0
    for name in ("make", "verify", "join"):
        assert name in result.output
    for words in (["bundle", "absent.yaml"], ["bundle", "make", "absent.yaml"]):
        result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "b")])
        assert result.exit_code == 1
        assert "there is no such recipe" in result.stderr


# ---- parts ----


def test_parts_have_the_size_and_are_put_together(bundle: Path, tmp_path: Path) -> None:
    parts = split(bundle, 4096)
    files = sorted(parts.glob("bundle.tar.*"))
    assert len(files) > 3
    assert {file.stat().st_size for file in files[:-1]} == {4096}
    assert 0 < files[-1].stat().st_size <= 4096
    join(parts, tmp_path / "other")
    assert find_faults(tmp_path / "other") == []
    assert sum_of(tmp_path / "other/SHA256SUMS") == sum_of(bundle / "SHA256SUMS")
    assert (tmp_path / "other/install.sh").stat().st_mode & 0o111
    assert not (tmp_path / "other.partial").exists()


def test_parts_are_put_together_with_nothing_installed(bundle: Path, tmp_path: Path) -> None:
    parts = split(bundle, 3000)
    commands = (parts / "README.txt").read_text()
    for command in ("sha256sum -c SHA256SUMS", "cat bundle.tar.* | tar -xf -"):
        assert command in commands
        done = subprocess.run(["sh", "-c", command], cwd=parts, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert find_faults(parts / "bundle") == []


def test_the_same_bundle_gives_the_same_parts(bundle: Path) -> None:
    first = (split(bundle, 4096) / "SHA256SUMS").read_text()
    (bundle / "empty").touch()
    assert (split(bundle, 4096) / "SHA256SUMS").read_text() == first


def test_damaged_and_missing_parts_are_all_named(bundle: Path, tmp_path: Path) -> None:
    parts = split(bundle, 4096)
    changed = bytearray((parts / "bundle.tar.0001").read_bytes())
    changed[17] ^= 1
    (parts / "bundle.tar.0001").write_bytes(changed)
    (parts / "bundle.tar.0002").unlink()
    with pytest.raises(UserError, match=r"2 of \d parts cannot be used") as refused:
        join(parts, tmp_path / "other")
    assert "bundle.tar.0001 has changed" in refused.value.what
    assert "bundle.tar.0002 is missing" in refused.value.what
    assert not (tmp_path / "other").exists()


def test_an_archive_that_leads_out_is_refused(bundle: Path, tmp_path: Path) -> None:
    import tarfile

    parts = tmp_path / "parts"
    parts.mkdir()
    with tarfile.open(parts / "bundle.tar.0000", "w") as archive:
        archive.add(bundle / "install.sh", arcname="bundle/../../evil")
    sums = f"{sum_of(parts / 'bundle.tar.0000')}  bundle.tar.0000\n"
    (parts / "SHA256SUMS").write_text(sums)
    with pytest.raises(UserError, match="which no bundle has"):
        join(parts, tmp_path / "deep/other")
    assert not (tmp_path / "evil").exists()


def test_more_parts_than_their_names_can_sort_are_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(f"{number:04d}" for number in range(media.MOST_PARTS)) == [
        f"{number:04d}" for number in range(media.MOST_PARTS)
    ]
    monkeypatch.setattr(media, "MOST_PARTS", 3)
    with pytest.raises(UserError, match="more than 3 parts"):
        split(bundle, 1000)
    assert not bundle.with_name("bundle.parts").exists()


def test_nothing_is_overwritten(bundle: Path, tmp_path: Path) -> None:
    parts = split(bundle, 4096)
    with pytest.raises(UserError, match="something here already"):
        join(parts, bundle)
    shutil.rmtree(parts)
    parts.mkdir()
    (parts / "mine").write_text("")
    with pytest.raises(UserError, match="something else here already"):
        split(bundle, 4096)


@pytest.mark.parametrize(
    ("text", "size"), [("4G", 4 * 10**9), ("700m", 7 * 10**8), ("512", 512), ("1.5G", None), ("0", None)]
)
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(UserError, match="is no size"):
            parse_size(text)
    else:
        assert parse_size(text) == size
    assert parse_size("4G") < 2**32  # the limit of FAT32
