"""A search under way: evaluations spent, and the best counts so far."""

from typing import NamedTuple

import numpy as np

from l2o.compression.problem import CompressionProblem


class Found(NamedTuple):
    """What a search found.

    Attributes:
        counts: Best counts on the validation rows, shape (groups,).
        score: Their score.
        evaluations: Number of networks that were measured.
    """

    counts: np.ndarray
    score: float
    evaluations: int


class Search:
    """Evaluations of a problem, of which there is a given number; keeps the best within budget."""

    def __init__(self, problem: CompressionProblem, evaluations: int) -> None:
        self.problem = problem
        self.evaluations = evaluations
        self.used = 0
        self.best = Found(np.asarray(problem.budget.lowest), -np.inf, 0)

    @property
    def left(self) -> int:
        """Number of evaluations that are left."""
        return self.evaluations - self.used

    def score(self, counts: np.ndarray) -> float:
        """Measure a network; the first of the best counts that keep the budget are kept."""
        value = self.problem.score(counts)
        self.record(counts, value, 1)
        return value

    def record(self, counts: np.ndarray, value: float, evaluations: int) -> None:
        """Count evaluations that were made elsewhere, and what the best of them found."""
        assert evaluations <= self.left
        self.used += evaluations
        budget = self.problem.budget
        if value > self.best.score and budget.spent(counts) <= budget.limit:
            self.best = Found(np.asarray(counts), value, 0)

    def found(self) -> Found:
        """The best, with the number of evaluations so far."""
        return self.best._replace(evaluations=self.used)


def check_evaluations(evaluations: int, least: int) -> None:
    """Raise a `ValueError` unless there are as many evaluations as a search needs."""
    if evaluations < least:
        raise ValueError(
            f"`evaluations` must be at least {least} for this search; got {evaluations}. Try "
            f"evaluations={max(200, least)}."
        )
