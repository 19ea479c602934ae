"""The accumulators of a tensor that designs with Adafactor-like features share.

Momenta, a second moment, and second moments factored over the two largest axes (Shazeer and Stern
2018); below rank 2 a full second moment stands for a factored one. They start at zero and are not
bias-corrected.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2o.optimizers import features

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
RMS_DECAYS = (0.999,)
FACTORED_DECAYS = (0.9, 0.99, 0.999)


class Accumulators(NamedTuple):
    """Accumulators of one tensor.

    Attributes:
        momenta: shape (3, *tensor's).
        second_moment: the tensor's shape.
        rows: shape (3, *tensor's with the largest axis reduced to 1); (3, *tensor's) below rank 2.
        columns: shape (3, *tensor's with the second largest axis reduced to 1); below rank 2 a
            zero of shape (1,) that stays so.
    """

    momenta: jax.Array
    second_moment: jax.Array
    rows: jax.Array
    columns: jax.Array


class Decays(NamedTuple):
    """What accumulators keep of themselves: three decays of momenta, one, and three factored."""

    momentum: features.Decays = MOMENTUM_DECAYS
    rms: features.Decays = RMS_DECAYS
    factored: features.Decays = FACTORED_DECAYS


def init(p: jax.Array) -> Accumulators:
    """Zero accumulators for a parameter of rank 1 or more."""

    def factored(reduced_axis: int | None) -> jax.Array:
        shape = list(p.shape)
        if reduced_axis is not None:
            shape[reduced_axis] = 1
        return jnp.zeros((len(FACTORED_DECAYS), *shape))

    smaller, larger = features.factored_axes(p.shape) or (None, None)
    return Accumulators(
        momenta=jnp.zeros((len(MOMENTUM_DECAYS), *p.shape)),
        second_moment=jnp.zeros(p.shape),
        rows=factored(larger),
        columns=jnp.zeros(1) if smaller is None else factored(smaller),
    )


def accumulate(g: jax.Array, before: Accumulators, decays: Decays) -> Accumulators:
    """The accumulators after one more gradient; all decays but momentum's are clipped to [0, 1]."""
    rms_decay = jnp.clip(jnp.asarray(decays.rms)[0], 0.0, 1.0)
    factored_decays = jnp.clip(jnp.asarray(decays.factored), 0.0, 1.0)
    square = jnp.square(g) + 1e-30

    def averages(before: jax.Array, reduced_axis: int | None) -> jax.Array:
        reduced = square
        if reduced_axis is not None:
            reduced = jnp.mean(square, axis=reduced_axis, keepdims=True)
        return features.moving_averages(before, reduced, factored_decays)

    smaller, larger = features.factored_axes(g.shape) or (None, None)
    return Accumulators(
        momenta=features.moving_averages(before.momenta, g, decays.momentum),
        second_moment=rms_decay * before.second_moment + (1.0 - rms_decay) * jnp.square(g),
        rows=averages(before.rows, larger),
        columns=before.columns if smaller is None else averages(before.columns, smaller),
    )


class Factored(NamedTuple):
    """What factored second moments give, each three features that broadcast to the tensor.

    Attributes:
        rows: R; below rank 2 the full second moment D, as are the columns.
        columns: C.
        of_gradient: by which to multiply the gradient: ρ γ, or 1/sqrt(D + 1e-9).
        of_momenta: by which to multiply each momentum: ρ γ, or 1/sqrt(D + `eps`).
    """

    rows: jax.Array
    columns: jax.Array
    of_gradient: list[jax.Array]
    of_momenta: list[jax.Array]


def factored(found: Accumulators, eps: float) -> Factored:
    """Row and column statistics, and the factors ρ of rows and γ of columns made of them.

    Args:
        found: of a tensor.
        eps: see `Factored`; at least `features.TINY`, or backpropagation gives NaN where a gradient
            has always been zero.
    """
    rows, columns = found.rows, found.columns
    axes = features.factored_axes(found.second_moment.shape)
    if axes is None:
        of_gradient = list(features.clipped_rsqrt(rows + 1e-9))
        return Factored(rows, rows, of_gradient, list(jax.lax.rsqrt(rows + eps)))
    mean = jnp.mean(rows, axis=1 + axes[0], keepdims=True)
    of_rows = features.clipped_rsqrt(rows / (mean + 1e-9))
    of_columns = features.clipped_rsqrt(columns)
    factors = [r * c for r, c in zip(of_rows, of_columns, strict=True)]
    return Factored(rows, columns, factors, factors)
