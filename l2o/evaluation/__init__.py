"""Comparisons with tuned baselines on held-out seeds, and their reports."""
