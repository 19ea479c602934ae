"""Features of a training run that agents observe: progress, loss, statistics of tensors.

Everything is free of scale: losses relative to each other, gradients relative to parameters. A
statistic is kept for each tensor and read for a group of them, weighted by size. Features are
bounded, and 0 where a run that has blown up would give NaN: no action is ever drawn from one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.optimizers import features

GRADIENT_DECAY = 0.99
MOMENTUM_DECAY = 0.9

NUM_RUN_FEATURES = 9 + features.NUM_LOSS_FEATURES + 1
"""Features of the whole run: fraction of the horizon, loss buffer, loss over its first value."""

NUM_TENSOR_FEATURES = 6
NUM_IDENTITY_FEATURES = 3


class RunStatistics(NamedTuple):
    """Statistics of a training run so far.

    Attributes:
        count: Number of updates so far, int32 scalar.
        horizon: Number of inner steps of the whole run, float32 scalar.
        losses: Averages of the loss, see `l2o.optimizers.features.LossBuffer`.
        first_loss: First finite loss, NaN before.
        momentum: Average of the gradients, a tree like the parameters.
        grad_square: Slow average of the mean squared gradient, not corrected, shape (tensors,).
        grad_momentum: Average of the mean product of gradient and momentum, shape (tensors,).
        param_square: Mean squared parameter, shape (tensors,).
        update_square: Mean squared last update, shape (tensors,).
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    horizon: jax.Array
    losses: features.LossBuffer
    first_loss: jax.Array
    momentum: optax.Params
    grad_square: jax.Array
    grad_momentum: jax.Array
    param_square: jax.Array
    update_square: jax.Array


def init_statistics(params: optax.Params, horizon: int | jax.Array) -> RunStatistics:
    """Make the statistics of a run before its first step."""
    nothing = lambda: jnp.zeros(len(jax.tree.leaves(params)), jnp.float32)
    return RunStatistics(
        count=jnp.zeros((), jnp.int32),
        horizon=jnp.asarray(horizon, jnp.float32),
        losses=features.loss_buffer_init(horizon),
        first_loss=jnp.float32(jnp.inf),
        momentum=jax.tree.map(lambda p: jnp.zeros_like(p, jnp.float32), params),
        grad_square=nothing(),
        grad_momentum=nothing(),
        param_square=mean_squares(params),
        update_square=nothing(),
    )


def mean_squares(tree: optax.Params) -> jax.Array:
    """Compute the mean square of each leaf, shape (leaves,); 0 for an empty leaf."""
    return mean_products(tree, tree)


def mean_products(tree: optax.Params, other: optax.Params) -> jax.Array:
    """Compute the mean product of each two leaves, shape (leaves,); 0 for empty leaves."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    products = [jnp.sum(x * y) / max(jnp.size(x), 1) for x, y in pairs]
    return jnp.stack(products) if products else jnp.zeros(0, jnp.float32)


def update_statistics(
    statistics: RunStatistics,
    grads: optax.Updates,
    params: optax.Params,
    updates: optax.Updates,
    value: jax.Array,
) -> RunStatistics:
    """Update the statistics by one more step; a value that is not finite is left out."""
    slow, fast = GRADIENT_DECAY, MOMENTUM_DECAY
    agreement = mean_products(grads, statistics.momentum)
    is_first = jnp.isinf(statistics.first_loss) & jnp.isfinite(value)
    return RunStatistics(
        count=jnp.asarray(optax.safe_increment(statistics.count)),
        horizon=statistics.horizon,
        losses=features.loss_buffer_update(statistics.losses, value),
        first_loss=jnp.where(is_first, value, statistics.first_loss),
        momentum=jax.tree.map(lambda m, g: fast * m + (1.0 - fast) * g, statistics.momentum, grads),
        grad_square=slow * statistics.grad_square + (1.0 - slow) * mean_squares(grads),
        grad_momentum=fast * statistics.grad_momentum + (1.0 - fast) * agreement,
        param_square=mean_squares(params),
        update_square=mean_squares(updates),
    )


def run_features(statistics: RunStatistics) -> jax.Array:
    """Compute the features that are the same for every agent, shape (`NUM_RUN_FEATURES`,)."""
    buffer = statistics.losses
    # The fastest average, corrected; there is none before the first loss.
    recent = buffer.means[0] / (1.0 - buffer.decays[0] ** jnp.maximum(buffer.count, 1))
    ratio = jnp.log(jnp.maximum(recent, 0.0) + 1e-8) - jnp.log(
        jnp.maximum(statistics.first_loss, 0.0) + 1e-8
    )
    descent = jnp.where(buffer.count > 0, 0.3 * jnp.clip(ratio, -10.0, 3.0), 0.0)
    run = jnp.concatenate(
        [
            features.progress_fraction(statistics.count, statistics.horizon),
            features.loss_buffer_features(buffer),
            descent[None],
        ]
    )
    return jnp.nan_to_num(run)


def tensor_features(statistics: RunStatistics, sizes: Sequence[int], *, pooled: bool) -> jax.Array:
    """Compute features of each tensor, or of all pooled; shape (agents, `NUM_TENSOR_FEATURES`).

    They are the sizes of the gradient, of its average and of the last update, all over that of the
    parameters; the share of the gradient that is not noise; its agreement with the average; the
    size of the parameters.
    """
    weights = jnp.asarray(sizes, jnp.float32) / max(sum(sizes), 1)

    def read(statistic: jax.Array) -> jax.Array:
        return jnp.sum(weights * statistic)[None] if pooled else statistic

    momentum_square = mean_squares(statistics.momentum)
    steps = jnp.maximum(statistics.count, 1).astype(jnp.float32)
    grad = read(statistics.grad_square) / (1.0 - GRADIENT_DECAY**steps)
    momentum = read(momentum_square) / jnp.square(1.0 - MOMENTUM_DECAY**steps)
    agreement = read(statistics.grad_momentum) / (1.0 - MOMENTUM_DECAY**steps)
    params = jnp.maximum(read(statistics.param_square), 1e-9)
    tensors = jnp.stack(
        [
            log_ratio(grad / params),
            log_ratio(momentum / params),
            log_ratio(read(statistics.update_square) / params),
            jnp.clip(momentum / (grad + 1e-20), 0.0, 2.0),
            jnp.clip(agreement * jax.lax.rsqrt(grad * momentum + 1e-30), -1.0, 1.0),
            log_ratio(params),
        ],
        axis=-1,
    )
    return jnp.nan_to_num(tensors)


def log_ratio(square: jax.Array) -> jax.Array:
    """Compute a fifth of the log of a root mean square, which may lie between 4e-6 and 3e5."""
    return 0.1 * jnp.clip(jnp.log(square + 1e-24), -25.0, 25.0)


def identity_features(params: optax.Params) -> jax.Array:
    """Compute rank, inputs and outputs of each tensor, which tell agents apart; (tensors, 3)."""
    rows = []
    for leaf in jax.tree.leaves(params):
        shape = jnp.shape(leaf)
        inputs = shape[-2] if len(shape) > 1 else 1
        outputs = shape[-1] if shape else 1
        rows.append([len(shape) - 1.0, 0.2 * jnp.log(inputs + 1.0), 0.2 * jnp.log(outputs + 1.0)])
    return jnp.asarray(rows, jnp.float32).reshape(-1, NUM_IDENTITY_FEATURES)
