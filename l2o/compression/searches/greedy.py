"""Greedy sensitivity: from the whole network down, always where it hurts least.

In each round, every group by itself is lowered until the network costs what the round allows, and
measured; the one with the best score stays lowered. Costs fall geometrically from the whole network
to the limit, in as many rounds as the evaluations allow (the idea of NetAdapt, Yang et al. 2018,
arXiv:1804.03230).
"""

import numpy as np

from l2o.compression.budget import Budget
from l2o.compression.problem import CompressionProblem
from l2o.compression.searches.global_magnitude import rest_spent
from l2o.compression.searches.search import Found, Search, check_evaluations


def greedy(problem: CompressionProblem, evaluations: int, seed: int) -> Found:
    """Lower the group that hurts least, round by round, down to the budget."""
    del seed
    budget, groups = problem.budget, problem.num_groups
    check_evaluations(evaluations, groups + 2)
    search = Search(problem, evaluations)
    search.score(problem.project(np.zeros(groups)))
    counts = np.array(budget.highest)
    whole = budget.spent(counts)
    rounds = (search.left - 1) // groups
    targets = np.geomspace(max(whole, 1), max(budget.limit, 1), rounds + 1)[1:]
    for target in np.floor(targets):
        while budget.spent(counts) > max(target, budget.limit) and search.left > groups:
            lowered = [lower(budget, counts, group, int(target)) for group in range(groups)]
            steps = [c for c in lowered if (c != counts).any()]
            # One that cannot be lowered far enough counts by what it saves.
            scores = [search.score(c) for c in steps]
            reached = [budget.spent(c) <= max(target, budget.limit) for c in steps]
            usable = [i for i, r in enumerate(reached) if r] or list(range(len(steps)))
            counts = steps[max(usable, key=lambda i: scores[i])]
    counts = within(budget, counts)
    search.score(rest_spent(budget, counts, np.argsort(counts / budget.highest)[::-1]))
    return search.found()


def lower(budget: Budget, counts: np.ndarray, group: int, target: int) -> np.ndarray:
    """Lower one group until the network costs the target, or as far as it goes."""
    low, high = int(budget.lowest[group]), int(counts[group])
    found = counts.copy()
    while low < high:
        middle = (low + high + 1) // 2
        found[group] = middle
        fits = budget.spent(found) <= target
        low, high = (middle, high) if fits else (low, middle - 1)
    found[group] = low
    return found


def within(budget: Budget, counts: np.ndarray) -> np.ndarray:
    """Lower all groups alike, if need be, until the budget is kept."""
    share = 1.0
    lowered = counts
    while budget.spent(lowered) > budget.limit:
        share *= 0.98
        lowered = np.maximum(budget.lowest, np.floor(share * counts)).astype(np.int32)
    return lowered
