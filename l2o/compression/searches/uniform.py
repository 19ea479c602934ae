"""No search: every group gets the same share."""

import numpy as np

from l2o.compression.problem import CompressionProblem
from l2o.compression.searches.search import Found, Search, check_evaluations


def uniform(problem: CompressionProblem, evaluations: int, seed: int) -> Found:
    """Give every group the same share; one evaluation."""
    del seed
    check_evaluations(evaluations, 1)
    search = Search(problem, 1)
    search.score(problem.project(np.zeros(problem.num_groups)))
    return search.found()
