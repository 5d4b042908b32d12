"""`python -m sdzero.cli`."""

from sdzero.cli import main

main()
