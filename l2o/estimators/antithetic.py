"""What evolution strategies share: antithetic pairs with common random numbers."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from l2o import parallel
from l2o.estimators.estimator import Estimator
from l2o.learned_optimizer import Theta
from l2o.problem import InnerState, Problem, Window
from l2o.task import Data, Key

PAIRED = InnerState(instance=None, params=0, opt_state=0, step=None, horizon=None)  # pyright: ignore[reportArgumentType]
"""vmap axes of a pair's inner state: the members differ in what they trained, and only in that."""

ALIKE = InnerState(instance=None, params=None, opt_state=None, step=None, horizon=None)  # pyright: ignore[reportArgumentType]
"""vmap axes of an inner state that both members start from."""


class PairEstimate(NamedTuple):
    """What one antithetic pair contributes to an estimate.

    Attributes:
        gradient: its meta-gradient, a tree like theta; zero where `valid` is 0.
        valid: 1.0, or 0.0 for a pair with a non-finite member.
        meta_loss: mean over the window and the members; zero where `valid` is 0.
        finite: fraction of inner steps with a finite training loss.
    """

    gradient: Theta
    valid: jax.Array
    meta_loss: jax.Array
    finite: jax.Array


def draw_perturbation(key: Key, theta: Theta, std: float) -> Theta:
    """Normal noise of standard deviation `std`, a tree like theta, in one draw."""
    flat, unravel = ravel_pytree(theta)
    return unravel(std * jax.random.normal(key, flat.shape))


def unroll_pair(
    problem: Problem,
    key: Key,
    theta: Theta,
    perturbation: Theta,
    state: InnerState,
    data: Data,
    axes: InnerState = PAIRED,
) -> tuple[InnerState, Window]:
    """A window under theta + ε (index 0) and theta - ε (index 1), on the same draws.

    Returns:
        The pair's state, with a leading axis of size 2 on what the members trained, and its
        window, with fields of shape (2, window).
    """
    thetas = jax.tree.map(lambda t, e: jnp.stack([t + e, t - e]), theta, perturbation)
    return jax.vmap(problem.unroll, (None, 0, axes, None), (PAIRED, 0))(key, thetas, state, data)


def pair_estimate(gradient: Theta, window: Window) -> PairEstimate:
    """A pair's contribution, masked as a whole unless both members' losses are finite."""
    valid = jnp.all(jnp.isfinite(window.loss) | ~window.mask)
    num_steps = jnp.maximum(jnp.sum(window.mask), 1)
    meta_loss = jnp.sum(jnp.where(window.mask, window.loss, 0.0)) / num_steps
    return PairEstimate(
        gradient=jax.tree.map(lambda g: jnp.where(valid, g, 0.0), gradient),
        valid=valid.astype(jnp.float32),
        meta_loss=jnp.where(valid, meta_loss, 0.0),
        finite=jnp.mean(window.finite.astype(jnp.float32)),
    )


def antithetic_estimator(
    problem: Problem,
    init_pair: Callable[[Key, Theta], Any],
    estimate_pair: Callable[[Key, Theta, Any, Data], tuple[PairEstimate, Any]],
    *,
    num_pairs: int,
    std: float,
    mesh: Mesh | None,
) -> Estimator:
    """An estimator from what one pair does: the mean of the valid pairs' gradients.

    Pair i draws from its own key, folded from i, whatever device it lives on. A pair with a
    non-finite member is left out of the mean and starts anew.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, or `std` <= 0.
    """
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1; got {num_pairs}. Try num_pairs=16.")
    if not std > 0:
        raise ValueError(f"`std` must be positive; got {std}. Try std=0.01.")

    def pair_keys(key: Key, indices: jax.Array) -> Key:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)

    def init(key: Key, theta: Theta) -> Any:
        return jax.vmap(init_pair, (0, None))(pair_keys(key, jnp.arange(num_pairs)), theta)

    def pair(key: Key, theta: Theta, state: Any, data: Data) -> tuple[PairEstimate, Any]:
        k_estimate, k_restart = jax.random.split(key)
        estimate, state = estimate_pair(k_estimate, theta, state, data)
        fresh = init_pair(k_restart, theta)
        return estimate, jax.tree.map(
            lambda old, new: jnp.where(estimate.valid > 0, old, new), state, fresh
        )

    def members(indices, states, key, theta, data):
        estimates, states = jax.vmap(pair, (0, None, 0, None))(
            pair_keys(key, indices), theta, states, data
        )
        return states, jax.tree.map(lambda x: jnp.sum(x, axis=0), estimates)

    run = parallel.over_devices(members, num_pairs, mesh)

    def estimate(key: Key, theta: Theta, state: Any, data: Data):
        state, sums = run(jnp.arange(num_pairs), state, key, theta, data)
        num_valid = jnp.maximum(sums.valid, 1.0)
        gradient = jax.tree.map(lambda g: g / num_valid, sums.gradient)
        metrics = {
            "meta_loss": jnp.where(sums.valid > 0, sums.meta_loss / num_valid, jnp.nan),
            "finite": sums.finite / num_pairs,
            "valid_pairs": sums.valid / num_pairs,
        }
        return gradient, state, metrics

    return Estimator(
        init=init,
        estimate=estimate,
        steps=2 * num_pairs * problem.window,
        data=problem.data,
    )
