"""Accumulators and per-parameter features that designs share.

A feature is an array that broadcasts to the parameter's shape; a set of features is a list of
such arrays, never a matrix with a feature axis (docs/architecture.md, "Where the speed comes
from"). Accumulators start at zero and are not bias-corrected.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Decays = Sequence[float] | jax.Array

TINY = 1e-24
"""Under Adam's root, whose slope is infinite at 0: where a gradient has always been zero,
backpropagation would give NaN. It vanishes next to `eps` squared."""

PROGRESS_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)


def progress_tanh(count: jax.Array) -> jax.Array:
    """Embedding of the absolute step: tanh(t/τ - 1) for eleven time scales τ; shape (11,)."""
    return jnp.tanh(count / jnp.asarray(PROGRESS_SCALES, jnp.float32) - 1.0)


def decays_from_offsets(initial: Sequence[float], offsets: jax.Array) -> jax.Array:
    """Decays β = 1 - exp(ln(1 - β₀) + 10 ω), so that noise of 0.01 in ω scales 1 - β by e^±0.1."""
    return 1.0 - (1.0 - jnp.asarray(initial, jnp.float32)) * jnp.exp(10.0 * offsets)


def moving_averages(
    averages: Sequence[jax.Array], x: jax.Array, decays: Decays
) -> tuple[jax.Array, ...]:
    """Move averages, each of the shape of `x`, towards it: a ← β a + (1 - β) x.

    They are arrays of their own, so that the state has each laid out and sharded like the
    parameters. Raises a `ValueError` unless there are as many decays as averages.
    """
    decays = jnp.asarray(decays, jnp.float32)
    return tuple(b * a + (1.0 - b) * x for a, b in zip(averages, decays, strict=True))


@jax.custom_jvp
def means(arrays: Sequence[jax.Array]) -> jax.Array:
    """Compute the mean of each array, shape (arrays,).

    Those of one shape are summed up in one pass, which computes them on the way and keeps none.
    """
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, x in enumerate(arrays):
        by_shape.setdefault(x.shape, []).append(i)
    found, order = [], []
    for shape, group in by_shape.items():
        sums = jax.lax.reduce(
            [arrays[i] for i in group],
            [jnp.zeros((), arrays[i].dtype) for i in group],
            lambda a, b: [x + y for x, y in zip(a, b, strict=True)],
            tuple(range(len(shape))),
        )
        found.append(jnp.stack(sums) / math.prod(shape))
        order += group
    return jnp.concatenate(found)[np.argsort(order)]


@means.defjvp
def _means_jvp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    # JAX's own rule for a reduction of several arrays fails where some have no tangent.
    return means(*primals), jnp.stack([jnp.mean(tangent) for tangent in tangents[0]])


def rms_scales(features: Sequence[jax.Array], eps: float = 1e-5) -> jax.Array:
    """Factors that divide features by their root mean squares, 1 / sqrt(eps + mean(x²)).

    A feature kept as a row or column has the same mean square as its broadcast.

    Returns:
        Shape (features,).
    """
    return jax.lax.rsqrt(eps + means([jnp.square(x) for x in features]))


def rms_normalize(features: Sequence[jax.Array], eps: float = 1e-5) -> list[jax.Array]:
    """Divide each feature by its root mean square over the tensor; see `rms_scales`."""
    # A barrier, or XLA would make one Triton kernel of this and all that makes a feature of a small
    # tensor: on a GPU it had not compiled an MLP so after a minute.
    return scaled(features, jax.lax.optimization_barrier(rms_scales(features, eps)))


def scaled(features: Sequence[jax.Array], scales: jax.Array) -> list[jax.Array]:
    """Multiply each feature by its scale."""
    return [x * scales[i] for i, x in enumerate(features)]


def between_passes(operands: Any, statistics: Any) -> tuple[Any, Any]:
    """Put a barrier between two passes, so that the second computes features anew.

    XLA would see that both passes over a tensor compute the same, and would keep it in between.
    """
    return jax.lax.optimization_barrier((operands, statistics))


def with_mean_squares(
    make: Callable[..., list[jax.Array]], *operands: Any
) -> tuple[list[jax.Array], jax.Array]:
    """Compute features and their mean squares, in a pass each that keeps no feature.

    Features outnumber the arrays that they are made of: kept from the pass that sums them up to
    the one that uses them they would be most of an update's memory.

    Args:
        make: `(*operands) -> features`.
        *operands: Trees of arrays.

    Returns:
        The features, and shape (features,).
    """
    squares = [jnp.square(x) for x in make(*operands)]
    operands, mean_squares = between_passes(operands, means(squares))
    return make(*operands), mean_squares


def with_rms_scales(
    make: Callable[..., list[jax.Array]], *operands: Any, eps: float = 1e-5
) -> tuple[list[jax.Array], jax.Array]:
    """Compute features and their `rms_scales`; see `with_mean_squares`."""
    found, mean_squares = with_mean_squares(make, *operands)
    return found, jax.lax.rsqrt(eps + mean_squares)


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Find the (second largest, largest) axes of a tensor; None below rank 2."""
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return order[-2], order[-1]


def clipped_rsqrt(x: jax.Array, floor: float = 1e-9) -> jax.Array:
    """Compute 1 / sqrt(max(x, floor))."""
    return jax.lax.rsqrt(jnp.maximum(x, floor))


FRACTION_CENTRES = (0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.1)


def progress_fraction(count: jax.Array, horizon: int | jax.Array) -> jax.Array:
    """Embedding of the fraction of the run: tanh(10 (t/N - c)) for nine c; shape (9,) (VeLO)."""
    return jnp.tanh(10.0 * (count / horizon - jnp.asarray(FRACTION_CENTRES, jnp.float32)))


def linear_decay(rate: float | jax.Array, count: jax.Array, horizon: int | jax.Array) -> jax.Array:
    """Compute a rate that falls as 1 - t/T, at step t = `count`; past T it is that of T - 1."""
    return rate * jnp.maximum(horizon - count, 1.0) / horizon


class LossBuffer(NamedTuple):
    """Ten averages of the loss, over time constants from ten steps to the whole run (VeLO).

    Their decay rates are exp(-1 / time constant), though VeLO's code speaks of half-lives.

    Attributes:
        means: Averages, shape (10,), not bias-corrected.
        lowest: Lowest value that each average has had, bias-corrected, shape (10,).
        count: Number of losses so far, an int32 scalar.
        decays: Decay rate of each average, shape (10,).
    """

    means: jax.Array
    lowest: jax.Array
    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    decays: jax.Array


NUM_LOSS_FEATURES = 9


def loss_buffer_init(horizon: int | jax.Array) -> LossBuffer:
    """Make an empty buffer for a run of `horizon` steps."""
    time_constants = 10.0 ** jnp.linspace(
        1.0, jnp.log10(jnp.float32(horizon)), 10, dtype=jnp.float32
    )
    return LossBuffer(
        means=jnp.zeros(10, jnp.float32),
        lowest=jnp.full(10, 1e12, jnp.float32),
        count=jnp.int32(0),
        decays=jnp.exp(-1.0 / time_constants),
    )


def loss_buffer_update(
    buffer: LossBuffer, loss: jax.Array, *, as_in_velo: bool = False
) -> LossBuffer:
    """Add a loss to a buffer, where it counts as twice the largest average at most.

    A loss that is not finite leaves it as it was.

    Args:
        buffer: Buffer of the losses before.
        loss: Loss, a scalar.
        as_in_velo: Whether that average is corrected for one loss more than there were, as in the
            code of VeLO and Celo: the second loss then counts as 1.05 times the first at most.
    """
    count = jnp.asarray(optax.safe_increment(buffer.count))
    corrected_for = count if as_in_velo else buffer.count
    # Zero before the first loss, when the quotient would be 0/0.
    before = buffer.means / jnp.where(buffer.count > 0, 1.0 - buffer.decays**corrected_for, 1.0)
    largest = jnp.where(buffer.count > 0, jnp.max(before), loss)
    bounded = jnp.minimum(2.0 * jnp.abs(largest), loss)
    means = buffer.decays * buffer.means + (1.0 - buffer.decays) * bounded
    lowest = jnp.minimum(buffer.lowest, means / (1.0 - buffer.decays**count))
    updated = LossBuffer(means, lowest, count, buffer.decays)
    return jax.tree.map(lambda new, old: jnp.where(jnp.isfinite(loss), new, old), updated, buffer)


def loss_buffer_features(buffer: LossBuffer) -> jax.Array:
    """Compare each average with the next slower one; shape (9,), in [-1, 1], 0 at first."""
    averages = buffer.means / (1.0 - buffer.decays ** jnp.maximum(buffer.count, 1))
    gap = averages[:-1] - buffer.lowest[:-1]
    slower_gap = jnp.maximum(averages[1:] - buffer.lowest[:-1], 1e-8)
    return jnp.where(buffer.count > 2, jnp.clip(gap / slower_gap - 1.0, -1.0, 1.0), 0.0)
