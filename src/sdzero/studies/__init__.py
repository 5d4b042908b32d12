"""The paper's studies, each by one command: `sdzero study NAME RECIPE`."""
