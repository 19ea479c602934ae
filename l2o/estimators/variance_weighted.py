"""Evolution and backpropagation from the same windows, weighted by their measured variance.

Both estimate the gradient of the smoothed loss E[L(θ + ε)]: g_es = ε (ℓ⁺ - ℓ⁻) / 2σ², and the
reparametrised g_rp = ½ (∇ℓ⁺ + ∇ℓ⁻). For each coordinate of theta
    g = (g_es / v_es + g_rp / v_rp) / (1 / v_es + 1 / v_rp),
with v the variance over the population (Metz, Maheswaranathan, Nixon, Freeman, Sohl-Dickstein
2019). Short windows follow backpropagation, long ones, whose gradients explode, evolution.
"""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.population import (
    PAIRED,
    MemberEstimate,
    as_pair,
    both_signs,
    check_differentiable,
    check_pairs,
    loss_difference,
    plus_member,
    population_estimator,
    std_at,
    window_mean,
)
from l2o.problem import InnerState, Problem, reset_run


def variance_weighted(
    problem: Problem, *, num_pairs: int, std: float | optax.Schedule, mesh: Mesh | None = None
) -> Estimator:
    """Combine truncated ES and truncated backpropagation coordinate by coordinate.

    Biased as both are when the horizon is longer than the window. A pair whose loss is finite and
    whose gradient is not counts as infinitely variable, so evolution takes over.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.variance_weighted(problem, num_pairs=8, std=0.01).steps
    80

    Args:
        problem: Training runs to unroll.
        num_pairs: Number of antithetic pairs, at least 2.
        std: Standard deviation σ of perturbations, in units of theta, or a schedule of it over
            estimates.
        mesh: Devices to spread the pairs over.

    Raises:
        ValueError: If `num_pairs` < 2 or not a multiple of the mesh's devices, `std` <= 0, or the
            meta-loss has no gradient.
    """
    check_differentiable(problem)
    check_pairs(num_pairs, std)
    if num_pairs < 2:
        raise ValueError(
            f"`num_pairs` must be at least 2, to measure a variance; got {num_pairs}. "
            "Try num_pairs=16."
        )

    def estimate_pair(problem, key, theta, step, run, data):
        k_perturbation, k_unroll = jax.random.split(key)
        sigma = std_at(std, step)
        epsilon = sigma * jax.random.normal(k_perturbation, theta.shape)

        def backpropagate(theta: jax.Array, run: InnerState):
            def cost(theta: jax.Array):
                after, window = problem.unroll(k_unroll, theta, run, data)
                return window_mean(window), (after, window)

            return jax.grad(cost, has_aux=True)(theta)

        gradients, (pair, window) = jax.vmap(backpropagate, (0, PAIRED), (0, (PAIRED, 0)))(
            both_signs(theta, epsilon), as_pair(run)
        )
        delta = loss_difference(window, sigma, "none", mesh)
        both_kinds = {
            "evolved": moments(0.5 * jnp.sum(delta) * (epsilon / sigma**2)),
            "backpropagated": moments(jnp.mean(gradients, axis=0)),
        }
        return MemberEstimate(both_kinds, window), plus_member(pair)

    return population_estimator(
        problem,
        lambda problem, key, theta: problem.init(key, theta),
        estimate_pair,
        num_members=num_pairs,
        steps_per_member=2 * problem.window,
        mesh=mesh,
        reset=reset_run,
        argument="num_pairs",
        combine=lambda mean: weigh(mean["evolved"], mean["backpropagated"]),
    )


Moments = tuple[jax.Array, jax.Array]
"""The mean, and the mean of the square, each a vector like theta."""


def moments(gradient: jax.Array) -> Moments:
    """Take a gradient and its square; where it is not finite, 0 and infinity."""
    finite = jnp.isfinite(gradient)
    return jnp.where(finite, gradient, 0.0), jnp.where(finite, gradient**2, jnp.inf)


def weigh(one: Moments, other: Moments) -> jax.Array:
    """Average two estimates by inverse variance; the first alone where both are infinite."""
    ratio = variance(*one) / variance(*other)
    share = 1.0 / (1.0 + jnp.where(jnp.isnan(ratio), 0.0, ratio))
    return share * one[0] + (1.0 - share) * other[0]


def variance(mean: jax.Array, square: jax.Array) -> jax.Array:
    """Compute the variance from two moments, infinite if the second overflows.

    Float32 does not tell a standard deviation of less than a thousandth of the mean from that.
    """
    floor = jnp.maximum(1e-6 * square, 1e-30)
    is_known = jnp.isfinite(square)
    centred = jnp.where(is_known, square, 0.0) - jnp.where(is_known, mean, 0.0) ** 2
    return jnp.where(is_known, jnp.maximum(centred, floor), jnp.inf)
