"""Several processes, on one host or many."""
