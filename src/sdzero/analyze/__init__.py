"""What training does to a model: where the divergence lies, how responses read, how runs go."""
