"""A run while it goes on: read from its folder, shown on a terminal."""
