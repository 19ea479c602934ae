"""Evolution strategies over whole runs: unbiased, and one outer step a run.

    g = 1/(2 σ²) ε (L(θ+ε) - L(θ-ε))
with the cost L of a whole run, both members from the same start on the same draws (Salimans, Ho,
Chen, Sidor, Sutskever 2017, antithetic form).
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.population import (
    MemberEstimate,
    Shaping,
    both_signs,
    check_pairs,
    check_problem,
    loss_difference,
    population_estimator,
    std_at,
)
from l2o.problem import Problem, check_no_curriculum, unroll_run


def full_es(
    problem: Problem,
    *,
    num_pairs: int,
    std: float | optax.Schedule,
    shaping: Shaping = "none",
    mesh: Mesh | None = None,
) -> Estimator:
    """Estimate by full ES: every pair starts anew and runs to its horizon in each estimate.

    Where horizons are drawn, every run counts the same, whatever its length, and as many steps are
    computed as the longest has.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.full_es(problem, num_pairs=8, std=0.01).steps
    320

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
    check_no_curriculum(problem, "full_es")
    check_pairs(num_pairs, std, shaping)

    def estimate_pair(problem, key, theta, step, state, data):
        k_perturbation, k_run = jax.random.split(key)
        sigma = std_at(std, step)
        epsilon = sigma * jax.random.normal(k_perturbation, theta.shape)
        run = lambda theta: unroll_run(problem, k_run, theta, data)
        window = jax.vmap(run)(both_signs(theta, epsilon))
        delta = loss_difference(window, sigma, shaping, mesh)
        gradient = 0.5 * jnp.sum(delta) * (epsilon / sigma**2)
        return MemberEstimate(gradient, window), state

    return population_estimator(
        problem,
        lambda problem, key, theta: (),
        estimate_pair,
        num_members=num_pairs,
        steps_per_member=2 * problem.horizon,
        mesh=mesh,
        argument="num_pairs",
    )
