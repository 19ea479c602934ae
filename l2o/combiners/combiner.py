"""What combiners have in common: they weigh gradients by their inner products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from l2o.task import Key

Combiner = Callable[[Key, jax.Array, jax.Array], jax.Array]
"""Function `(key, products, weights) -> coefficients` of n gradients.

`products` are the inner products of the gradients, (n, n), and the combined gradient is their sum
with the coefficients, (n,). `weights`, (n,), say how much each gradient counts and are 1 on average
over those that take part; one whose weight is 0 is left out.
"""

ITERATIONS = 400
"""Iterations of `minimize_on_simplex`, of which each is two products of a matrix and a vector."""

FAR = 1e6
"""Less than all numbers that are projected, of which none is above 100."""


def weighted_products(products: jax.Array, weights: jax.Array) -> jax.Array:
    """Inner products of the gradients times their weights, in units of the sum of their squares."""
    weighted = jnp.outer(weights, weights) * products
    total = jnp.trace(weighted)
    return weighted / jnp.where(total > 0, total, 1.0)


def minimize_on_simplex(
    gradient: Callable[[jax.Array], jax.Array],
    smoothness: jax.Array | float,
    taking_part: jax.Array,
) -> jax.Array:
    """Minimise a convex function of shares that sum to 1, by Nesterov's projected gradient.

    The momentum starts anew where it points uphill (O'Donoghue and Candès 2015).

    Args:
        gradient: Gradient of the function at shares of shape (n,).
        smoothness: Lipschitz constant of the gradient.
        taking_part: Which shares may be above 0, shape (n,); at least one.

    Returns:
        The shares, shape (n,).
    """

    def project(x: jax.Array) -> jax.Array:
        return optax.projections.projection_simplex(jnp.where(taking_part, x, -FAR))

    def step(_, carry):
        shares, ahead, momentum = carry
        found = project(ahead - gradient(ahead) / smoothness)
        is_uphill = jnp.vdot(ahead - found, found - shares) > 0
        momentum = jnp.where(is_uphill, 1.0, momentum)
        following = 0.5 * (1.0 + jnp.sqrt(1.0 + 4.0 * momentum**2))
        ahead = found + jnp.where(is_uphill, 0.0, (momentum - 1.0) / following) * (found - shares)
        return found, ahead, following

    start = taking_part / jnp.maximum(jnp.sum(taking_part), 1)
    return jax.lax.fori_loop(0, ITERATIONS, step, (start, start, jnp.float32(1.0)))[0]
