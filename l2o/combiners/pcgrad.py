"""PCGrad: gradients without what opposes one another (Yu et al. 2020).

    gᵢ' ← gᵢ
    gᵢ' ← gᵢ' - (gᵢ'·gⱼ / ‖gⱼ‖²) gⱼ    where gᵢ'·gⱼ < 0, for each other j in a random order

and the combined gradient is the mean of all gᵢ' (the paper's is their sum). Where no two oppose
each other that is the mean.
"""

import jax
import jax.numpy as jnp

from l2o.task import Key


def pcgrad(key: Key, products: jax.Array, weights: jax.Array) -> jax.Array:
    """Combine gradients after projecting each onto the normal planes of those it opposes.

    For `l2o.average_estimators`.

    >>> import jax, jax.numpy as jnp
    >>> opposed = jnp.array([[1.0, -1.0], [-1.0, 2.0]])
    >>> print(pcgrad(jax.random.key(0), opposed, jnp.ones(2)))
    [1.   0.75]

    Args:
        key: Random key of the orders.
        products: Inner products of the gradients, shape (n, n).
        weights: Weight of each gradient, shape (n,), 1 on average; one of 0 is left out.

    Returns:
        Coefficients, shape (n,), with which the gradients add up to the combined one.
    """
    num = products.shape[0]
    weighted = jnp.outer(weights, weights) * products

    def project(key: Key, i: jax.Array) -> jax.Array:
        """Coefficients of gradient i after its projections."""

        def away_from(coefficients: jax.Array, j: jax.Array):
            product, square = coefficients @ weighted[:, j], weighted[j, j]
            opposes = (product < 0) & (j != i) & (square > 0)
            share = jnp.where(opposes, product / jnp.where(square > 0, square, 1.0), 0.0)
            return coefficients.at[j].add(-share), None

        start = jnp.zeros(num).at[i].set(1.0)
        return jax.lax.scan(away_from, start, jax.random.permutation(key, num))[0]

    found = jax.vmap(project)(jax.random.split(key, num), jnp.arange(num))
    taking_part = weights > 0
    mean = jnp.sum(jnp.where(taking_part[:, None], found, 0.0), 0) / jnp.maximum(
        jnp.sum(taking_part), 1
    )
    return weights * mean
