"""A curriculum: weights that follow the tasks on which most is learned just now.

Progress is the distance between a fast and a slow moving average of the meta-loss,

    p_i = |f_i - s_i|,   f ← f + (1 - γ_f)(L - f),   s ← s + (1 - γ_s)(L - s)

whichever way it goes, since what is forgotten is worth learning again (Kanitscheider et al. 2021,
there of success rates; Graves et al. 2017 for the idea).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2o.weightings.weighting import Weighting, check_floor


class ProgressState(NamedTuple):
    """State of the rule, of shape (tasks,) each.

    Attributes:
        given: Weights that users gave.
        fast: Fast average of the meta-loss; NaN until there was one.
        slow: Slow average of it.
    """

    given: jax.Array
    fast: jax.Array
    slow: jax.Array


def learning_progress(
    fast_decay: float = 0.9, slow_decay: float = 0.98, floor: float = 0.3
) -> Weighting:
    """Move weights to the tasks whose meta-losses change most.

    >>> import jax.numpy as jnp, l2o
    >>> rule = l2o.learning_progress(floor=0.0)
    >>> state = rule.init(jnp.array([0.5, 0.5]))
    >>> for losses in ([3.0, 1.0], [2.0, 1.0], [1.0, 1.0]):
    ...     state = rule.update(state, jnp.array(losses))
    >>> rule.weights(state).tolist()
    [1.0, 0.0]

    Args:
        fast_decay: Decay γ of the fast average, for each outer step.
        slow_decay: Decay γ of the slow average, above that of the fast one.
        floor: Share of the weights that stays as it was given, so that no task is forgotten.

    Raises:
        ValueError: If an argument is outside its range.
    """
    if not 0 <= fast_decay < slow_decay < 1:
        raise ValueError(
            f"`fast_decay` and `slow_decay` must be from 0 up, below 1 and in this order; got "
            f"{fast_decay} and {slow_decay}. Try fast_decay=0.9, slow_decay=0.98."
        )
    check_floor(floor)

    def init(given: jax.Array) -> ProgressState:
        unknown = jnp.full_like(given, jnp.nan)
        return ProgressState(given, unknown, unknown)

    def weights(state: ProgressState) -> jax.Array:
        progress = state.given * jnp.nan_to_num(jnp.abs(state.fast - state.slow), nan=0.0)
        total = jnp.sum(progress)
        share = jnp.where(total > 0, progress / jnp.where(total > 0, total, 1.0), state.given)
        return floor * state.given + (1.0 - floor) * share

    def update(state: ProgressState, losses: jax.Array) -> ProgressState:
        def follow(average: jax.Array, decay: float) -> jax.Array:
            following = jnp.where(jnp.isnan(average), losses, average)
            following = following + (1.0 - decay) * (losses - following)
            return jnp.where(jnp.isfinite(losses), following, average)

        return state._replace(
            fast=follow(state.fast, fast_decay), slow=follow(state.slow, slow_decay)
        )

    return Weighting(init, weights, update)
