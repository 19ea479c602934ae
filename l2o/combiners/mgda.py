"""MGDA: the shortest vector in the convex hull of the gradients (Désidéri 2012).

    g = Σᵢ αᵢ gᵢ,    α = argmin ‖Σᵢ αᵢ gᵢ‖² over shares αᵢ ≥ 0, Σᵢ αᵢ = 1

A small step down g raises none of the losses. It is zero where none can fall without another's
rising. Weights multiply the gradients first, and a longer one has a smaller share. Two at a time
exchange shares, for which there is a closed form, whatever the sizes of the others.
"""

import jax
import jax.numpy as jnp

from l2o.combiners.combiner import weighted_products
from l2o.task import Key

SWEEPS = 60
"""Times that all pairs are gone through."""


def mgda(key: Key, products: jax.Array, weights: jax.Array) -> jax.Array:
    """Combine gradients so that no loss rises: multiple-gradient descent.

    For `l2o.average_estimators`. Of gradients (1, 0) and (0, 2) it is (0.8, 0.4).

    >>> import jax, jax.numpy as jnp
    >>> print(mgda(jax.random.key(0), jnp.diag(jnp.array([1.0, 4.0])), jnp.ones(2)).round(3))
    [0.8 0.2]

    Args:
        key: Not used.
        products: Inner products of the gradients, shape (n, n).
        weights: Weight of each gradient, shape (n,), 1 on average; one of 0 is left out.

    Returns:
        Coefficients, shape (n,), with which the gradients add up to the combined one.
    """
    del key
    weighted = weighted_products(products, weights)
    pairs = jnp.stack(jnp.triu_indices(len(weights), 1), 1)
    taking_part = weights > 0

    def exchange(shares: jax.Array, pair: jax.Array) -> tuple[jax.Array, None]:
        """Find the best shares of two, with those of the others as they are."""
        i, j = pair
        slopes = weighted @ shares
        curvature = weighted[i, i] + weighted[j, j] - 2.0 * weighted[i, j]
        moved = (slopes[j] - slopes[i]) / jnp.where(curvature > 0, curvature, 1.0)
        moved = jnp.clip(moved, -shares[i], shares[j])
        moved = jnp.where(taking_part[i] & taking_part[j] & (curvature > 0), moved, 0.0)
        return shares.at[i].add(moved).at[j].add(-moved), None

    def sweep(_, shares: jax.Array) -> jax.Array:
        return jax.lax.scan(exchange, shares, pairs)[0]

    start = taking_part / jnp.maximum(jnp.sum(taking_part), 1)
    return weights * jax.lax.fori_loop(0, SWEEPS, sweep, start)
