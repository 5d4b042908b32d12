"""Imported by the server process of `in_ranks`, which imports by name alone."""

import in_ranks

in_ranks.preload()
