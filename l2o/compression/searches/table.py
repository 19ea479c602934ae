"""Searches by name."""

from collections.abc import Callable

from l2o.compression.problem import CompressionProblem
from l2o.compression.searches.search import Found
from l2o.registry import Registry

SearchFn = Callable[[CompressionProblem, int, int], Found]
"""`(problem, evaluations, seed) -> Found`."""

SEARCHES: Registry[SearchFn] = Registry(
    {
        name: f"l2o.compression.searches.{name}:{name}"
        for name in ("uniform", "global_magnitude", "greedy", "random_search", "tpe", "ppo")
    }
)
"""Searches, which are imported when they are asked for."""
