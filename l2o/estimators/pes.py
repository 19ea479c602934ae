"""Persistent evolution strategies: unbiased meta-gradients from truncated windows.

Each antithetic pair keeps both inner states and the sum ξ of its perturbations ε since the run
began. A loss is credited to every perturbation that its run has felt,
    g = 1/(2 σ²) (A ξ + B ε),
where A is the mean loss difference over the window's steps up to and including the end of the run
and B that over the steps of the run that follows (Vicol, Metz, Sohl-Dickstein 2021, antithetic
form). Counting the last step of a run to B, as google/learned_optimization does, is biased.
"""

from typing import Unpack

from l2o.estimators.antithetic import EvolutionOptions
from l2o.estimators.estimator import Estimator
from l2o.estimators.persistent import Credit, persistent_estimator
from l2o.problem import Problem


def pes(
    problem: Problem, *, credit: Credit = "exclusive", **options: Unpack[EvolutionOptions]
) -> Estimator:
    """PES: unbiased for the mean loss over the horizon, whatever the window.

    Where early perturbations still move late losses, its variance grows with the number of windows
    in a run. Pairs are at stages of their own.

    Args:
        problem: what to unroll.
        credit: see `persistent.credit_window`.
        **options: see `EvolutionOptions`.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, `std` <= 0, or
            `shaping` is unknown.
    """
    return persistent_estimator(problem, redraw="every_window", credit=credit, **options)
