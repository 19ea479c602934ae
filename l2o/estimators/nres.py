"""Noise-reuse evolution strategies: PES with one perturbation a run.

Each antithetic pair draws ε when its run begins and keeps it to the end, so that every window's
loss difference is credited to the same ε,
    g = 1/(2 σ²) ε (mean of ℓ⁺ - ℓ⁻ over the window)
(Li, Harrison, Sohl-Dickstein, Smith, Metz 2023). PES credits a loss to the sum of its windows'
perturbations, which grows with their number; the one perturbation here does not.
"""

from typing import Unpack

from l2o.estimators.antithetic import EvolutionOptions
from l2o.estimators.estimator import Estimator
from l2o.estimators.persistent import persistent_estimator
from l2o.problem import Problem


def nres(problem: Problem, **options: Unpack[EvolutionOptions]) -> Estimator:
    """NRES: unbiased like PES, and less noisy in estimates of many windows a run.

    Pairs are at stages of their own. If a run ends inside a window, the steps of the next one
    within that window feel the old perturbation and it is credited for them, as in PES.

    Args:
        problem: what to unroll.
        **options: see `EvolutionOptions`.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, `std` <= 0, or
            `shaping` is unknown.
    """
    return persistent_estimator(problem, redraw="every_run", **options)
