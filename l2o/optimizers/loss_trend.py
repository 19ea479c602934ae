"""What designs remember of a run's loss, and what they tell their networks of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.learned_optimizer import require_value

LOSS_DECAYS = (0.9, 0.99)


class LossTrend(NamedTuple):
    """Averages of the loss of a training run.

    Attributes:
        first_loss: Loss at the first update.
        losses: Fast and slow moving averages of the loss, shape (2,), not bias-corrected.
    """

    first_loss: jax.Array
    losses: jax.Array


def no_trend() -> LossTrend:
    """The trend before the first loss."""
    return LossTrend(jnp.float32(-1.0), jnp.zeros(len(LOSS_DECAYS), jnp.float32))


def follow_loss(trend: LossTrend, count: jax.Array, value: Any, design: str) -> LossTrend:
    """Add the loss of a step, of which there have been `count`.

    One below zero counts as zero, and one that is not finite as the fast average.
    """
    value = require_value(value, design)
    decays = jnp.asarray(LOSS_DECAYS, jnp.float32)
    is_finite = jnp.isfinite(value)
    # One bad batch must not blind the averages for good, nor a loss below zero their log.
    before = trend.losses[0] / (1.0 - decays[0] ** jnp.maximum(count, 1))
    value = jnp.where(is_finite, jnp.maximum(value, 0.0), before)
    is_first = is_finite & (trend.first_loss < 0)
    # The first finite loss, however late, stands for those before it.
    weight = 1.0 - jnp.where(is_first, decays ** (count + 1.0), decays)  # an integer may overflow
    return LossTrend(
        first_loss=jnp.where(is_first, value, trend.first_loss),
        losses=decays * trend.losses + weight * value,
    )


NUM_RUN_STATISTICS = 6


def run_statistics(trend: LossTrend, count: jax.Array, horizon: int | jax.Array) -> jax.Array:
    """Six statistics of progress and loss trend, which are the same for every tensor."""
    progress = jnp.minimum(count / horizon, 1.0)
    fast, slow = jnp.log(
        trend.losses / (1.0 - jnp.asarray(LOSS_DECAYS, jnp.float32) ** (count + 1.0)) + 1e-8
    )
    first = jnp.log(jnp.maximum(trend.first_loss, 0.0) + 1e-8)
    return jnp.stack(
        [
            progress,
            jnp.sqrt(progress),
            progress**0.25,
            0.2 * jnp.log(count + 1.0),
            jnp.clip(fast - slow, -3.0, 3.0),
            jnp.where(trend.first_loss < 0, 0.0, 0.3 * jnp.clip(slow - first, -10.0, 3.0)),
        ]
    )
