"""ES-Single: one perturbation a run, with all pairs at the same stage.

The estimator of Vicol 2023, found at the same time as NRES and equal to it for one pair: ε is drawn
once a run and every window is credited to it. Here the pairs begin together and, with a fixed
horizon, stay together: an estimate sees one stretch of the run, and only the mean over all
stretches estimates the gradient of the whole.
"""

from typing import Unpack

from l2o.estimators.antithetic import EvolutionOptions
from l2o.estimators.estimator import Estimator
from l2o.estimators.persistent import persistent_estimator
from l2o.problem import Problem


def es_single(problem: Problem, **options: Unpack[EvolutionOptions]) -> Estimator:
    """ES-Single: NRES in lock-step, unbiased over a whole run.

    A pair that is left out because it is not finite gives its run up, and is out of step from then
    on; so is every pair where horizons are drawn.

    Args:
        problem: what to unroll.
        **options: see `EvolutionOptions`.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, `std` <= 0, or
            `shaping` is unknown.
    """
    return persistent_estimator(problem, redraw="every_run", start="together", **options)
