"""MGDA: the shortest vector in the convex hull of the gradients (Désidéri 2012).

    g = Σᵢ αᵢ gᵢ,    α = argmin ‖Σᵢ αᵢ gᵢ‖² over shares αᵢ ≥ 0, Σᵢ αᵢ = 1

A small step down g raises none of the losses. It is zero where none can fall without another's
rising. Weights multiply the gradients first, and a longer one has a smaller share.
"""

import jax
import jax.numpy as jnp

from l2o.combiners.combiner import minimize_on_simplex
from l2o.task import Key


def mgda(key: Key, products: jax.Array, weights: jax.Array) -> jax.Array:
    """Combine gradients so that no loss rises: multiple-gradient descent.

    For `l2o.average_estimators`. Of gradients (1, 0) and (0, 2) it is (0.8, 0.4).

    >>> import jax, jax.numpy as jnp
    >>> print(mgda(jax.random.key(0), jnp.diag(jnp.array([1.0, 4.0])), jnp.ones(2)).round(3))
    [0.8 0.2]

    Args:
        key: Not used.
        products: Inner products of the gradients, shape (n, n).
        weights: Weight of each gradient, shape (n,), which sum to n; one of 0 is left out.

    Returns:
        Coefficients, shape (n,), with which the gradients add up to the combined one.
    """
    del key
    weighted = jnp.outer(weights, weights) * products
    largest = jnp.trace(weighted)
    weighted = weighted / jnp.where(largest > 0, largest, 1.0)
    return weights * minimize_on_simplex(lambda shares: weighted @ shares, 1.0, weights > 0)
