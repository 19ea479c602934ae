"""Noise-reuse evolution strategies: PES with one perturbation a run.

Each antithetic pair draws ε when its run begins and keeps it to the end, so that every window's
loss difference is credited to the same ε,
    g = 1/(2 σ²) ε (mean of ℓ⁺ - ℓ⁻ over the window)
(Li, Harrison, Sohl-Dickstein, Smith, Metz 2023). PES credits a loss to the sum of its windows'
perturbations, which grows with their number; the one perturbation here does not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.pes import credit_window
from l2o.estimators.population import (
    EstimateMember,
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


class NoiseReusePair(NamedTuple):
    """A pair between two windows.

    Attributes:
        inner: Training runs of both members, as `unroll_pair` returns them.
        perturbation: ε of the run, a vector like theta.
        score: ε/σ², with σ as it was when ε was drawn.
        perturbation_sum: Sum of ε/σ² over what the run was under: of two where it began within a
            window, under the perturbation of the run before.
        needs_resample: Whether the next window draws another ε.
    """

    inner: InnerState
    perturbation: jax.Array
    score: jax.Array
    perturbation_sum: jax.Array
    needs_resample: jax.Array


def nres(
    problem: Problem,
    *,
    num_pairs: int,
    std: float | optax.Schedule,
    shaping: Shaping = "none",
    mesh: Mesh | None = None,
) -> Estimator:
    """Estimate the meta-gradient by NRES: unbiased like PES, less noisy over many windows a run.

    Pairs are at stages of their own. If a run ends inside a window, the steps of the next one
    within that window are under the old perturbation and it is credited for them, as in PES.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.nres(problem, num_pairs=8, std=0.01, shaping="sign").steps
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
        lambda problem, key, theta: first_pair(problem.init(key, theta), theta),
        reuse_noise(std, shaping, mesh),
        num_members=num_pairs,
        steps_per_member=2 * problem.window,
        mesh=mesh,
        reset=reset_pair,
        argument="num_pairs",
    )


def first_pair(run: InnerState, theta: jax.Array) -> NoiseReusePair:
    """Begin a pair from a run, to draw its perturbation in the first window."""
    zeros = jnp.zeros_like(theta)
    return NoiseReusePair(as_pair(run), zeros, zeros, zeros, needs_resample=jnp.bool_(True))


def reset_pair(pair: NoiseReusePair) -> NoiseReusePair:
    """End a pair's run, so that its next window starts another, under another perturbation."""
    return pair._replace(
        inner=reset_run(pair.inner),
        perturbation_sum=jnp.zeros_like(pair.perturbation_sum),
        needs_resample=jnp.bool_(True),
    )


def reuse_noise(std: float | optax.Schedule, shaping: Shaping, mesh: Mesh | None) -> EstimateMember:
    """Build what a pair does in a window; see `nres` for the arguments."""

    def estimate_pair(problem, key, theta, step, pair, data):
        k_perturbation, k_unroll = jax.random.split(key)
        sigma = std_at(std, step)
        drawn = sigma * jax.random.normal(k_perturbation, theta.shape)
        is_new = pair.needs_resample
        epsilon = jnp.where(is_new, drawn, pair.perturbation)
        score = jnp.where(is_new, drawn / sigma**2, pair.score)
        perturbation_sum = pair.perturbation_sum + jnp.where(is_new, score, 0.0)
        inner, window = unroll_pair(problem, k_unroll, theta, epsilon, pair.inner, data)
        delta = loss_difference(window, sigma, shaping, mesh)
        gradient, carried = credit_window(delta, window.done[0], perturbation_sum, score)
        has_ended = jnp.any(window.done[0])
        pair = NoiseReusePair(inner, epsilon, score, carried, needs_resample=has_ended)
        return MemberEstimate(gradient, window), pair

    return estimate_pair
