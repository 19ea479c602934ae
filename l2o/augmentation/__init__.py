"""Augmentation: tasks made of tasks, to meta-train on more than there are.

Each is a function from a task to a task, and they compose. An augmentation draws what it needs once
an instance, apart from what the task draws: for one key, instance, parameters and batches are those
of the plain task. Losses of the validation and test splits are those of the plain task, but for
those of `scaled_loss`, which scales all; metrics are those of the plain task on every split.
"""
