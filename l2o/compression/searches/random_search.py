"""Random search: actions uniform in the cube, after the uniform allocation."""

import numpy as np

from l2o.compression.problem import CompressionProblem
from l2o.compression.searches.search import Found, Search, check_evaluations


def random_search(problem: CompressionProblem, evaluations: int, seed: int) -> Found:
    """Measure random actions, projected onto the budget."""
    check_evaluations(evaluations, 1)
    search = Search(problem, evaluations)
    rng = np.random.default_rng(seed)
    action = np.zeros(problem.num_groups)
    while search.left:
        search.score(problem.project(action))
        action = rng.uniform(-1.0, 1.0, problem.num_groups)
    return search.found()
