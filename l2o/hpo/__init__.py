"""Policies beside engines for hyperparameter optimization."""
