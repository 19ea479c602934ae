"""The ways to meta-train: each is a frozen dataclass of its own options, which builds its learner.

At the command line each is a word after the options of the run, with its own options behind it.
"""
