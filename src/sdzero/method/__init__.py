"""The paper, one file an idea."""
