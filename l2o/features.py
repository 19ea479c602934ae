"""Accumulators and per-parameter features that designs share.

A feature is an array that broadcasts to the parameter's shape; a set of features is a list of
such arrays, never a matrix with a feature axis (docs/architecture.md, "Where the speed comes
from"). Accumulators start at zero and are not bias-corrected.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Decays = Sequence[float] | jax.Array

PROGRESS_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)


def progress_tanh(count: jax.Array) -> jax.Array:
    """Embedding of the absolute step: tanh(t/τ - 1) for eleven time scales τ; shape (11,)."""
    return jnp.tanh(count / jnp.asarray(PROGRESS_SCALES) - 1.0)


def decays_from_offsets(initial: Sequence[float], offsets: jax.Array) -> jax.Array:
    """Decays β = 1 - exp(ln(1 - β₀) + 10 ω), so that noise of 0.01 in ω scales 1 - β by e^±0.1."""
    return 1.0 - (1.0 - jnp.asarray(initial)) * jnp.exp(10.0 * offsets)


def moving_averages(
    averages: Sequence[jax.Array], x: jax.Array, decays: Decays
) -> tuple[jax.Array, ...]:
    """Each average moved towards `x`: a ← β a + (1 - β) x."""
    return tuple(b * a + (1.0 - b) * x for a, b in zip(averages, decays, strict=True))


def rms_normalize(features: Sequence[jax.Array], eps: float = 1e-5) -> list[jax.Array]:
    """Each feature divided by its root mean square over the tensor: x / sqrt(eps + mean(x²)).

    A feature kept as a row or column has the same mean square as its broadcast.
    """
    return [x * jax.lax.rsqrt(eps + jnp.mean(jnp.square(x))) for x in features]


def factored_axes(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """The (second largest, largest) axes of a tensor, or None below rank 2."""
    if len(shape) < 2:
        return None
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    return order[-2], order[-1]


def clipped_rsqrt(x: jax.Array, floor: float = 1e-9) -> jax.Array:
    """1 / sqrt(max(x, floor))."""
    return jax.lax.rsqrt(jnp.maximum(x, floor))
