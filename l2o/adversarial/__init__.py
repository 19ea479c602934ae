"""Attacks on inputs: tasks trained against them, and tasks that are attacks themselves."""
