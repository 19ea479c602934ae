"""Meta-gradient estimators, one a file, and what they share."""
