"""Truncated evolution strategies: antithetic ES within a window, from a shared state.

Both members start from the same inner state, so a loss is credited to this window's perturbation
alone and what it does to later windows is not seen: biased, short-sighted, and cheap in variance.
    g = 1/(2 σ²) ε (mean of ℓ⁺ - ℓ⁻ over the window)
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.population import (
    MemberEstimate,
    Shaping,
    as_pair,
    check_pairs,
    check_problem,
    loss_difference,
    plus_member,
    population_estimator,
    std_at,
    unroll_pair,
)
from l2o.problem import Problem, reset_run


def truncated_es(
    problem: Problem,
    *,
    num_pairs: int,
    std: float | optax.Schedule,
    shaping: Shaping = "none",
    mesh: Mesh | None = None,
) -> Estimator:
    """Estimate by truncated ES: low variance, biased when the horizon is longer than the window.

    The next window goes on from the member at theta + ε.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.truncated_es(problem, num_pairs=8, std=0.01).steps
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

    def estimate_pair(problem, key, theta, step, run, data):
        k_perturbation, k_unroll = jax.random.split(key)
        sigma = std_at(std, step)
        epsilon = sigma * jax.random.normal(k_perturbation, theta.shape)
        pair, window = unroll_pair(problem, k_unroll, theta, epsilon, as_pair(run), data)
        delta = loss_difference(window, sigma, shaping, mesh)
        gradient = 0.5 * jnp.sum(delta) * (epsilon / sigma**2)
        return MemberEstimate(gradient, window), plus_member(pair)

    return population_estimator(
        problem,
        lambda problem, key, theta: problem.init(key, theta),
        estimate_pair,
        num_members=num_pairs,
        steps_per_member=2 * problem.window,
        mesh=mesh,
        reset=reset_run,
        argument="num_pairs",
    )
