"""What tests that need the sandbox are marked with, and how they ask for a verdict."""

import os
import shutil

import pytest

from sdzero.verify.attack_answers import response_of

NEEDED = os.environ.get("SDZERO_NEEDS_SANDBOX") == "1"

needs_sandbox = pytest.mark.skipif(
    shutil.which("bwrap") is None and not NEEDED,
    reason="bubblewrap is not installed (apt-get install bubblewrap): programs are not run",
)
"""Skips without bubblewrap, except where the sandbox is demanded (as in CI): there the test fails."""

block = response_of
"""A response that holds a program."""
