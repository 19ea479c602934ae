"""Trained networks made smaller: to a budget of parameters, multiply-adds or bits."""
