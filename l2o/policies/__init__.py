"""Policies: optimizers whose hyperparameters an agent controls."""
