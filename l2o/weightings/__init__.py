"""How much each of several tasks counts, as meta-training goes on; one rule a file."""
