"""Bias, variance and cost of meta-gradient estimators."""
