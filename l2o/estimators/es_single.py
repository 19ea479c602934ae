"""ES-Single: one perturbation a run, with all pairs at the same stage.

The estimator of Vicol 2023, found at the same time as NRES and equal to it for one pair: ε is drawn
once a run and every window is credited to it. Here the pairs begin together and, with a fixed
horizon, stay together: an estimate sees one stretch of the run, and only the mean over all
stretches estimates the gradient of the whole.
"""

import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.nres import first_pair, reset_pair, reuse_noise
from l2o.estimators.population import Shaping, check_pairs, check_problem, population_estimator
from l2o.problem import Problem


def es_single(
    problem: Problem,
    *,
    num_pairs: int,
    std: float | optax.Schedule,
    shaping: Shaping = "none",
    mesh: Mesh | None = None,
) -> Estimator:
    """Estimate the meta-gradient by ES-Single: NRES in lock-step, unbiased over a whole run.

    A pair whose run is reset, because it is not finite, is out of step from then on; so is every
    pair where horizons are drawn.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.es_single(problem, num_pairs=8, std=0.01).steps
    80

    Args:
        problem: Training runs to unroll.
        num_pairs: Number of antithetic pairs.
        std: Standard deviation σ of perturbations, in units of theta, or a schedule of it over
            estimates. Smoothing bias grows as σ², the noise of stochastic losses as 1/σ.
        shaping: Weight of a pair's loss difference: "none" for the difference itself, "sign" for
            one vote a pair, "centered_rank" for the difference of ranks in the population,
            "standardize" for the difference over the standard deviation of the population's losses.
        mesh: Devices to spread the pairs over.

    Raises:
        ValueError: If `num_pairs` < 1 or not a multiple of the mesh's devices, `std` <= 0, or
            `shaping` is unknown.
    """
    check_problem(problem)
    check_pairs(num_pairs, std, shaping)
    return population_estimator(
        problem,
        # Every pair at the first step of its run, where those of NRES are at a random stage.
        lambda problem, key, theta: first_pair(problem.start(key, theta), theta),
        reuse_noise(std, shaping, mesh),
        num_members=num_pairs,
        steps_per_member=2 * problem.window,
        mesh=mesh,
        reset=reset_pair,
        argument="num_pairs",
    )
