"""Bias, variance, cosine and cost of estimators of a meta-gradient."""
