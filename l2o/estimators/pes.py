"""Persistent evolution strategies: unbiased meta-gradients from truncated windows.

Each antithetic pair keeps both inner states and the sum ξ of its perturbations ε since the run
began. A loss is credited to every perturbation that its run was under,
    g = 1/(2 σ²) (A ξ + B ε),
where A is the mean loss difference over the window's steps up to and including the end of the run
and B that over the steps of the run that follows (Vicol, Metz, Sohl-Dickstein 2021, antithetic
form). Counting the last step of a run to B, as google/learned_optimization does, is biased.
"""

from typing import NamedTuple

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
    population_estimator,
    std_at,
    unroll_pair,
)
from l2o.problem import InnerState, Problem, reset_run
from l2o.task import Key


class PersistentPair(NamedTuple):
    """A pair between two windows.

    Attributes:
        inner: Training runs of both members, as `unroll_pair` returns them.
        perturbation_sum: ξ/σ², the sum of ε/σ² since the run began, a vector like theta; σ may
            follow a schedule, and each ε is over the square of its own.
    """

    inner: InnerState
    perturbation_sum: jax.Array


def pes(
    problem: Problem,
    *,
    num_pairs: int,
    std: float | optax.Schedule,
    shaping: Shaping = "none",
    mesh: Mesh | None = None,
) -> Estimator:
    """Estimate the meta-gradient by PES: unbiased for the mean loss of a run, whatever the window.

    Where early perturbations still move late losses, its variance grows with the number of windows
    in a run. Pairs are at stages of their own.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> estimator = l2o.pes(problem, num_pairs=8, std=0.01)
    >>> estimator.steps  # inner steps of one estimate: 8 pairs x 2 members x 5 steps
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

    def init_pair(problem: Problem, key: Key, theta: jax.Array) -> PersistentPair:
        return PersistentPair(as_pair(problem.init(key, theta)), jnp.zeros_like(theta))

    def estimate_pair(problem, key, theta, step, pair, data):
        k_perturbation, k_unroll = jax.random.split(key)
        sigma = std_at(std, step)
        epsilon = sigma * jax.random.normal(k_perturbation, theta.shape)
        score = epsilon / sigma**2
        perturbation_sum = pair.perturbation_sum + score
        inner, window = unroll_pair(problem, k_unroll, theta, epsilon, pair.inner, data)
        delta = loss_difference(window, sigma, shaping, mesh)
        gradient, carried = credit_window(delta, window.done[0], perturbation_sum, score)
        return MemberEstimate(gradient, window), PersistentPair(inner, carried)

    def reset(pair: PersistentPair) -> PersistentPair:
        return PersistentPair(reset_run(pair.inner), jnp.zeros_like(pair.perturbation_sum))

    return population_estimator(
        problem,
        init_pair,
        estimate_pair,
        num_members=num_pairs,
        steps_per_member=2 * problem.window,
        mesh=mesh,
        reset=reset,
        argument="num_pairs",
    )


def credit_window(
    delta: jax.Array, done: jax.Array, perturbation_sum: jax.Array, score: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Credit each step of a window to the perturbations that its run was under.

    Args:
        delta: Loss differences over the number of steps, shape (steps,).
        done: Whether a step is the last of a run, shape (steps,).
        perturbation_sum: ξ/σ² of the run that the window begins in, this window's included.
        score: ε/σ² of this window.

    Returns:
        The pair's meta-gradient, and ξ/σ² of the run that it is in afterwards.
    """
    has_ended = jnp.cumsum(done) > 0
    is_next = jnp.roll(has_ended, 1).at[0].set(False)
    a = jnp.sum(jnp.where(is_next, 0.0, delta))
    b = jnp.sum(jnp.where(is_next, delta, 0.0))
    gradient = 0.5 * (a * perturbation_sum + b * score)
    # A run that ended with the window is followed by one that nothing has perturbed yet.
    next_sum = jnp.where(done[-1], 0.0, score)
    return gradient, jnp.where(has_ended[-1], next_sum, perturbation_sum)
