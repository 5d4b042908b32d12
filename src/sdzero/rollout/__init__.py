"""Who samples responses."""
