"""Other methods at the same budget."""
