"""Wheels as files: which of them run on a target, and whether a folder of them is complete."""

import zipfile
from pathlib import Path

import pytest
from packaging.tags import parse_tag

from sdzero.errors import UserError
from sdzero.onprem.licences import NOT_STATED, licence_of
from sdzero.onprem.wheel_metadata import Target, Wheel, closure_of, read_wheels
from wheelhouse import make_wheel

TARGET = Target.parse("manylinux_2_28_x86_64", "3.11")


@pytest.mark.parametrize(
    ("tag", "runs"),
    [
        ("py3-none-any", True),
        ("py311-none-any", True),
        ("py2.py3-none-any", True),
        ("cp311-cp311-manylinux_2_28_x86_64", True),
        ("cp311-cp311-manylinux2014_x86_64", True),
        ("cp311-cp311-manylinux1_x86_64", True),
        ("cp39-abi3-manylinux_2_17_x86_64", True),
        ("py3-none-manylinux_2_24_x86_64", True),
        ("cp311-cp311-manylinux_2_29_x86_64", False),
        ("cp312-cp312-manylinux_2_17_x86_64", False),
        ("cp311-cp311-manylinux_2_17_aarch64", False),
        ("cp311-cp311-musllinux_1_2_x86_64", False),
        ("cp311-cp311-linux_x86_64", False),
        ("cp311-cp311-win_amd64", False),
    ],
)
def test_which_wheels_run_on_the_target(tag: str, runs: bool) -> None:
    assert TARGET.runs(parse_tag(tag)) is runs


def test_a_wheel_that_was_built_here_may_have_the_plain_tag() -> None:
    assert TARGET.runs(parse_tag("cp311-cp311-linux_x86_64"), built_here=True)
    assert not TARGET.runs(parse_tag("cp311-cp311-linux_aarch64"), built_here=True)


@pytest.mark.parametrize(
    ("platform", "python"),
    [
        ("win_amd64", "3.11"),
        ("manylinux_2_28_sparc", "3.11"),
        ("manylinux2014_x86_64", "3.11"),
        ("manylinux_2_28_x86_64", "3.9"),
    ],
)
def test_targets_that_cannot_be_are_refused(platform: str, python: str) -> None:
    with pytest.raises(UserError, match="is no"):
        Target.parse(platform, python)


def test_markers_hold_as_on_the_target() -> None:
    found = Target.parse("manylinux_2_28_aarch64", "3.13").environment
    assert (found["platform_machine"], found["python_version"]) == ("aarch64", "3.13")
    assert found["sys_platform"] == "linux"


def test_requirements_are_followed_with_extras_and_markers(tmp_path: Path) -> None:
    make_wheel(
        tmp_path,
        "root",
        needs=[
            "Middle[fast]>=1",
            "for-windows; sys_platform == 'win32'",
            "newer>=2",
            "of-extra; extra == 'more'",
            "of-other-extra; extra == 'other'",
        ],
    )
    make_wheel(tmp_path, "middle", needs=["deep; extra == 'fast'", "never; extra == 'slow'", "root"])
    make_wheel(tmp_path, "newer", version="1.9")
    closure = closure_of(read_wheels(tmp_path), "root", ["more"], TARGET)
    assert closure.needs == {"root": ["middle"], "middle": ["root"]}
    assert closure.missing == [
        "middle needs deep, and there is none",
        "root needs newer>=2, and there is 1.9",
        "root needs of-extra, and there is none",
    ]


def test_a_package_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    make_wheel(tmp_path, "one", version="1")
    make_wheel(tmp_path, "one", version="2")
    with pytest.raises(UserError, match="the package one is there twice"):
        read_wheels(tmp_path)


def test_a_torn_wheel_is_refused(tmp_path: Path) -> None:
    file = make_wheel(tmp_path, "one")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="no whole wheel"):
        Wheel.read(file)
    with zipfile.ZipFile(file, "w") as empty:
        empty.writestr("nothing", "")
    with pytest.raises(UserError, match="no whole wheel"):
        Wheel.read(file)


@pytest.mark.parametrize(
    ("headers", "licence"),
    [
        (("License-Expression: MIT OR Apache-2.0", "License: other"), "MIT OR Apache-2.0"),
        (("License: BSD 3-Clause", "Classifier: License :: OSI Approved :: BSD License"), "BSD 3-Clause"),
        (
            (
                "License: A whole text\n        of many lines",
                "Classifier: License :: OSI Approved :: MIT License",
            ),
            "MIT License",
        ),
        (("Classifier: Programming Language :: Python",), NOT_STATED),
    ],
)
def test_what_a_wheel_says_of_its_licence(tmp_path: Path, headers: tuple[str, ...], licence: str) -> None:
    assert licence_of(Wheel.read(make_wheel(tmp_path, "one", headers=headers))) == licence
