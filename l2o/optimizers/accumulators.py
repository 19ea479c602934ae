"""The accumulators of a tensor that designs with Adafactor-like features share.

Momenta, a second moment, and second moments factored over the two largest axes (Shazeer and Stern
2018); below rank 2 a full second moment stands for a factored one. They start at zero and are not
bias-corrected.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2o.optimizers import features
from l2o.optimizers.layout import Packed

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
RMS_DECAYS = (0.999,)
FACTORED_DECAYS = (0.9, 0.99, 0.999)


class Accumulators(NamedTuple):
    """Accumulators of one tensor.

    Attributes:
        momenta: Three momenta, each of the tensor's shape.
        second_moment: Second moment, of the tensor's shape.
        factored: Second moments over rows and columns.
    """

    momenta: tuple[jax.Array, ...]
    second_moment: jax.Array
    factored: Packed


class RowsAndColumns(NamedTuple):
    """Second moments of one tensor, factored over its two largest axes.

    Attributes:
        rows: Row statistics, shape (3, *tensor's with the largest axis reduced to 1); below rank 2
            full second moments, shape (3, *tensor's).
        columns: Column statistics, shape (3, *tensor's with the second largest axis reduced to 1);
            below rank 2 nothing, shape (0,).
    """

    rows: jax.Array
    columns: jax.Array


class Decays(NamedTuple):
    """Decay rates of three momenta, of the second moment and of three factored second moments."""

    momentum: features.Decays = MOMENTUM_DECAYS
    rms: features.Decays = RMS_DECAYS
    factored: features.Decays = FACTORED_DECAYS


def init(p: jax.Array) -> Accumulators:
    """Make zero accumulators for a parameter."""

    def factored(reduced_axis: int | None) -> jax.Array:
        shape = list(p.shape)
        if reduced_axis is not None:
            shape[reduced_axis] = 1
        return jnp.zeros((len(FACTORED_DECAYS), *shape), jnp.float32)

    smaller, larger = features.factored_axes(p.shape) or (None, None)
    return Accumulators(
        momenta=tuple(jnp.zeros_like(p, jnp.float32) for _ in MOMENTUM_DECAYS),
        second_moment=jnp.zeros_like(p, jnp.float32),
        factored=Packed(
            RowsAndColumns(
                rows=factored(larger),
                columns=jnp.zeros(0, jnp.float32) if smaller is None else factored(smaller),
            )
        ),
    )


def accumulate(g: jax.Array, before: Accumulators, decays: Decays) -> Accumulators:
    """Update accumulators by a gradient; all decays but momentum's are clipped to [0, 1]."""
    rms_decay = jnp.clip(jnp.asarray(decays.rms, jnp.float32)[0], 0.0, 1.0)
    factored_decays = jnp.clip(jnp.asarray(decays.factored, jnp.float32), 0.0, 1.0)
    factored_decays = jnp.expand_dims(factored_decays, range(1, 1 + g.ndim))
    square = jnp.square(g) + 1e-30

    def averages(before: jax.Array, reduced_axis: int | None) -> jax.Array:
        reduced = square
        if reduced_axis is not None:
            reduced = jnp.mean(square, axis=reduced_axis, keepdims=True)
        return factored_decays * before + (1.0 - factored_decays) * reduced

    smaller, larger = features.factored_axes(g.shape) or (None, None)
    rows, columns = before.factored.values
    return Accumulators(
        momenta=features.moving_averages(before.momenta, g, decays.momentum),
        second_moment=rms_decay * before.second_moment + (1.0 - rms_decay) * jnp.square(g),
        factored=Packed(
            RowsAndColumns(
                rows=averages(rows, larger),
                columns=columns if smaller is None else averages(columns, smaller),
            )
        ),
    )


class Factored(NamedTuple):
    """Features of factored second moments, three each, that broadcast to the tensor.

    Attributes:
        rows: Row statistics R; below rank 2 the full second moment D, as are the columns.
        columns: Column statistics C.
        inverse_roots: 1/sqrt(R + 1e-8), then 1/sqrt(C + 1e-8).
        gradient_factors: Factors of the gradient: ρ γ, or 1/sqrt(D + 1e-9) below rank 2.
        momentum_factors: Factors of each momentum: ρ γ, or 1/sqrt(D + `eps`) below rank 2.
    """

    rows: jax.Array
    columns: jax.Array
    inverse_roots: list[jax.Array]
    gradient_factors: list[jax.Array]
    momentum_factors: list[jax.Array]


def factored(found: Accumulators, eps: float) -> Factored:
    """Compute row and column statistics, and the factors ρ of rows and γ of columns.

    Args:
        found: Accumulators of a tensor.
        eps: Term added to D for the momenta's factors; at least `features.TINY`, or backpropagation
            gives NaN where a gradient has always been zero.
    """
    axes = features.factored_axes(found.second_moment.shape)
    rows, columns = found.factored.values
    if axes is None:
        full = rows
        roots = 2 * [*jax.lax.rsqrt(full + 1e-8)]
        gradient_factors = list(features.clipped_rsqrt(full + 1e-9))
        return Factored(full, full, roots, gradient_factors, list(jax.lax.rsqrt(full + eps)))
    mean = jnp.mean(rows, axis=1 + axes[0], keepdims=True)
    roots = [*jax.lax.rsqrt(rows + 1e-8), *jax.lax.rsqrt(columns + 1e-8)]
    row_factors = features.clipped_rsqrt(rows / (mean + 1e-9))
    column_factors = features.clipped_rsqrt(columns)
    # A barrier, so that these small arrays are kept in memory: XLA would compute them anew at every
    # element, and on a GPU had not decided so after a minute.
    rows, columns, roots, row_factors, column_factors = jax.lax.optimization_barrier(
        (rows, columns, roots, row_factors, column_factors)
    )
    factors = [r * c for r, c in zip(row_factors, column_factors, strict=True)]
    return Factored(rows, columns, roots, factors, factors)


def moment_features(
    g: jax.Array, found: Accumulators, eps: float
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Compute the features that AdafacMLP and Celo share, not normalised.

    Args:
        g: Gradient of a tensor.
        found: Accumulators of the tensor.
        eps: See `factored`.

    Returns:
        With r = 1/sqrt(v + 1e-6) the eleven features m, v, m·r, r, g·ρ·γ, and the fifteen R, C,
        1/sqrt(R), 1/sqrt(C), m·ρ·γ, where row and column statistics stay rows and columns.
    """
    rows, columns, inverse_roots, gradient_factors, momentum_factors = factored(found, eps)
    v, momenta = found.second_moment, found.momenta
    r = jax.lax.rsqrt(v + 1e-6)
    moments = [*momenta, v, *[m * r for m in momenta], r, *[g * f for f in gradient_factors]]
    scaled = [m * f for m, f in zip(momenta, momentum_factors, strict=True)]
    return moments, [*rows, *columns, *inverse_roots, *scaled]
