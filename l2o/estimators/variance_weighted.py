"""Evolution and backpropagation from the same windows, weighted by their measured variance.

Both estimate the gradient of the smoothed loss E[L(θ + ε)]: g_es = ε (ℓ⁺ - ℓ⁻) / 2σ², and the
reparametrised g_rp = ½ (∇ℓ⁺ + ∇ℓ⁻). For each coordinate of theta
    g = (g_es / v_es + g_rp / v_rp) / (1 / v_es + 1 / v_rp),
with v the variance over the population (Metz, Maheswaranathan, Nixon, Freeman, Sohl-Dickstein
2019). Short windows follow backpropagation, long ones, whose gradients explode, evolution.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.antithetic import (
    ALIKE,
    PAIRED,
    as_schedule,
    as_vector,
    both_signs,
    check_options,
    draw_perturbation,
    like,
    pair_gradient,
    pair_outcome,
    plus_member,
)
from l2o.estimators.backprop import check_differentiable
from l2o.estimators.estimator import Estimator
from l2o.estimators.population import (
    is_finite,
    member_estimate,
    population_estimator,
    window_mean,
)
from l2o.learned_optimizer import Theta
from l2o.problem import InnerState, Problem, given_up
from l2o.task import Data, Key


def variance_weighted(
    problem: Problem, *, num_pairs: int, std: float | optax.Schedule, mesh: Mesh | None = None
) -> Estimator:
    """Truncated ES and truncated backpropagation, combined coordinate by coordinate.

    Biased as both are when the horizon is longer than the window. A pair whose loss is finite and
    whose gradient is not counts as infinitely variable, so evolution takes over.

    Args:
        problem: what to unroll.
        num_pairs: antithetic pairs, at least 2.
        std: σ, in units of theta, or a schedule of it over estimates.
        mesh: devices to spread the pairs over.

    Raises:
        ValueError: if `num_pairs` < 2 or not a multiple of the mesh's devices, `std` <= 0, or the
            meta-loss has no gradient.
    """
    check_differentiable(problem)
    check_options(num_pairs, std, "none")
    if num_pairs < 2:
        raise ValueError(
            f"`num_pairs` must be at least 2, to measure a variance; got {num_pairs}. "
            "Try num_pairs=16."
        )
    schedule = as_schedule(std)

    def members(keys: Key, theta: Theta, states: Any, step: jax.Array, data: Data):
        sigma = schedule(step)
        of_vector, flat = as_vector(problem, theta)

        def pair(key: Key, state: InnerState):
            k_perturbation, k_unroll = jax.random.split(key)
            perturbation = draw_perturbation(k_perturbation, flat, sigma)

            def member(theta: jax.Array, state: InnerState):
                def cost(theta: jax.Array):
                    after, window = of_vector.unroll(k_unroll, theta, state, data)
                    return window_mean(window), (after, window)

                return jax.grad(cost, has_aux=True)(theta)

            gradients, (both, window) = jax.vmap(member, (0, ALIKE), (0, (PAIRED, 0)))(
                both_signs(flat, perturbation), state
            )
            outcome = pair_outcome(window, perturbation, sigma)
            evolved = pair_gradient(outcome, window.loss[0] - window.loss[1])
            both_kinds = {
                "evolved": moments(evolved),
                "backpropagated": moments(jnp.mean(gradients, axis=0)),
            }
            return member_estimate(both_kinds, window, is_finite(window)), plus_member(both)

        return jax.vmap(pair)(keys, states)

    return population_estimator(
        problem,
        problem.init,
        members,
        give_up=given_up,
        num_members=num_pairs,
        steps=2 * num_pairs * problem.window,
        mesh=mesh,
        name="num_pairs",
        combine=lambda mean, num_valid, theta: like(
            theta, weigh(mean["evolved"], mean["backpropagated"])
        ),
    )


Moments = tuple[jax.Array, jax.Array]
"""The mean, and the mean of the square, each a vector like theta."""


def moments(gradient: jax.Array) -> Moments:
    """A gradient and its square; where it is not finite, 0 and infinity."""
    finite = jnp.isfinite(gradient)
    return jnp.where(finite, gradient, 0.0), jnp.where(finite, gradient**2, jnp.inf)


def weigh(one: Moments, other: Moments) -> jax.Array:
    """The mean of two estimates by inverse variance; that of the first must be finite."""
    variance, other_variance = variance_of(*one), variance_of(*other)
    share = 1.0 / (1.0 + variance / other_variance)
    return share * one[0] + (1.0 - share) * other[0]


def variance_of(mean: jax.Array, square: jax.Array) -> jax.Array:
    """The variance from two moments, infinite if the second overflows.

    Float32 does not tell a standard deviation of less than a thousandth of the mean from that.
    """
    floor = jnp.maximum(1e-6 * square, 1e-30)
    is_known = jnp.isfinite(square)
    centred = jnp.where(is_known, square, 0.0) - jnp.where(is_known, mean, 0.0) ** 2
    return jnp.where(is_known, jnp.maximum(centred, floor), jnp.inf)
