"""CAGrad: near the mean, where the slowest loss falls most (Liu et al. 2021).

    g = g₀ + c ‖g₀‖ g_α / ‖g_α‖,    g₀ = mean of gᵢ,   g_α = Σᵢ αᵢ gᵢ
    α = argmin g_α·g₀ + c ‖g₀‖ ‖g_α‖ over shares αᵢ ≥ 0, Σᵢ αᵢ = 1

which maximises the least gᵢ·g over all g with ‖g - g₀‖ ≤ c ‖g₀‖. Its fixed points are those of the
mean gradient as long as c < 1. Here c = 0.5, the paper's for toy problems; the norms are √(‖·‖² +
10⁻⁴ Σᵢ ‖gᵢ‖²), so that the minimum is found where g_α is zero, too.
"""

import jax
import jax.numpy as jnp

from l2o.combiners.combiner import minimize_on_simplex, weighted_products
from l2o.task import Key

RADIUS = 0.5
"""c: distance from the mean gradient, in units of its norm."""

SMOOTHING = 1e-4
"""Added to the square of a norm, in units of the sum of all squares."""


def cagrad(key: Key, products: jax.Array, weights: jax.Array) -> jax.Array:
    """Combine gradients so that the slowest loss falls most, not far from the mean gradient.

    For `l2o.average_estimators`.

    >>> import jax, jax.numpy as jnp
    >>> alike = jnp.ones((2, 2))
    >>> print(cagrad(jax.random.key(0), alike, jnp.ones(2)).round(2))
    [0.75 0.75]

    Args:
        key: Not used.
        products: Inner products of the gradients, shape (n, n).
        weights: Weight of each gradient, shape (n,), 1 on average; one of 0 is left out.

    Returns:
        Coefficients, shape (n,), with which the gradients add up to the combined one.
    """
    del key
    taking_part = weights > 0
    weighted = weighted_products(products, weights)
    mean = taking_part / jnp.maximum(jnp.sum(taking_part), 1)
    reach = RADIUS * jnp.sqrt(mean @ weighted @ mean)

    def length(shares: jax.Array) -> jax.Array:
        return jnp.sqrt(shares @ weighted @ shares + SMOOTHING)

    def gradient(shares: jax.Array) -> jax.Array:
        return weighted @ mean + reach / length(shares) * (weighted @ shares)

    smoothness = jnp.maximum(reach, 1e-3) / SMOOTHING**0.5
    shares = minimize_on_simplex(gradient, smoothness, taking_part)
    exact = jnp.sqrt(jnp.maximum(shares @ weighted @ shares, 1e-12))
    return weights * (mean + reach / exact * shares)
