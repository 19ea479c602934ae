"""Policies beside engines for hyperparameter optimization, at equal inner steps."""
