"""Searches for counts within a budget; one a file, all by the same number of evaluations."""
