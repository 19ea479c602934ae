"""A control without gradients: random search on the surface of the ball.

The search of Andriushchenko et al. 2020 (Square Attack, arXiv:1912.00049), whose squares of pixels
are sets of numbers drawn anew here, as inputs need not be images: a proposal changes a part of a
row, and stays where its score is higher. If it finds more than projected gradient ascent does, the
network's gradients mislead, and accuracy under ascent is no measure of robustness.
"""

import jax
import jax.numpy as jnp
import numpy as np

from l2o.adversarial.ball import Ball
from l2o.adversarial.pgd import Score, worse
from l2o.task import Key

FIRST_PART = 0.8
"""Part of a row that the first proposals change."""

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Parts of the search after which the part of the row halves."""


def random_search(
    key: Key, score: Score, inputs: jax.Array, ball: Ball, *, evaluations: int
) -> jax.Array:
    """Search the surface of the ball for points that score higher, in each row on its own.

    >>> import jax, jax.numpy as jnp
    >>> score = lambda points: points @ jnp.array([3.0, -1.0])
    >>> random_search(
    ...     jax.random.key(0), score, jnp.zeros((1, 2)), Ball("linf", 0.5), evaluations=50
    ... )
    Array([[ 0.5, -0.5]], dtype=float32)

    Args:
        key: Random key.
        score: Function of points, shape (rows, ...), that returns how bad each row is.
        inputs: Given rows, shape (rows, ...), which count as well.
        ball: Where points must stay.
        evaluations: Number of proposals that are scored, the given rows not counted.

    Returns:
        Points of the highest score found, of the shape of the inputs.
    """
    drop = np.zeros(evaluations)
    for at in HALVINGS:
        drop[int(np.ceil(at * evaluations)) :] += 1
    parts = jnp.asarray(FIRST_PART * 0.5**drop, inputs.dtype)

    def corner(key: Key) -> jax.Array:
        return ball.radius * jax.random.rademacher(key, inputs.shape, inputs.dtype)

    def propose(best: tuple[jax.Array, jax.Array], drawn: tuple[Key, jax.Array]):
        k_part, k_corner = jax.random.split(drawn[0])
        uniform = jax.random.uniform(k_part, inputs.shape)
        # At least one number of a row changes, that of the lowest draw.
        axes = tuple(range(1, inputs.ndim))
        chosen = uniform <= jnp.maximum(drawn[1], jnp.min(uniform, axis=axes, keepdims=True))
        moved = jnp.where(chosen, inputs + corner(k_corner), best[0])
        points = ball.project(moved, inputs)
        return worse(best, (points, score(points))), None

    k_start, k_steps = jax.random.split(key)
    start = ball.project(inputs + corner(k_start), inputs)
    best = worse((inputs, score(inputs)), (start, score(start)))
    keys = jax.random.split(k_steps, evaluations - 1)
    (points, _), _ = jax.lax.scan(propose, best, (keys, parts[1:]))
    return points
