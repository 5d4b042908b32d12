"""The peak of this process's memory rises with what is taken, and stays when it is given back."""

import subprocess
import sys

from support import environment

CODE = """
import sys
from sdzero.peak_memory import peak_memory_bytes
before = peak_memory_bytes()
block = bytearray(b"x" * (200 << 20))
taken = peak_memory_bytes()
del block
assert "torch" not in sys.modules
print(taken - before >= 200 << 20, peak_memory_bytes() >= taken)
"""


def test_the_peak_is_of_the_most_that_was_taken() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment())
    assert done.stdout.split() == ["True", "True"], done.stderr
