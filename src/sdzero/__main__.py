"""`python -m sdzero`, and with it `accelerate launch -m sdzero` and `torchrun -m sdzero`."""

from sdzero.cli import main

main()
