"""Projected gradient ascent on inputs (Madry et al. 2018, arXiv:1706.06083).

From a random point of the ball B around the inputs x, x_{t+1} = P_B(x_t + η s(∇L(x_t))), where s is
the direction of steepest ascent in the ball's norm: the sign of the gradient, or the gradient of
each row divided by its length.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from l2o.adversarial.ball import Ball
from l2o.task import Key

Gradient = Callable[[jax.Array], jax.Array]
"""Function of points that returns the gradient of what is to rise, of the same shape."""

Score = Callable[[jax.Array], jax.Array]
"""Function of points that returns how bad each row is, of shape (rows,)."""

REACH = 2.5
"""What the steps add up to, in radii, unless their size is given: Madry et al.'s rule."""


def ascend(
    gradient: Gradient,
    start: jax.Array,
    inputs: jax.Array,
    ball: Ball,
    *,
    steps: int,
    step_size: float | jax.Array | None = None,
) -> jax.Array:
    """Climb from given points for a number of steps.

    >>> import jax.numpy as jnp
    >>> inputs = jnp.zeros((1, 2))
    >>> ascend(lambda points: jnp.array([[3.0, -1.0]]), inputs, inputs, Ball("linf", 0.5), steps=4)
    Array([[ 0.5, -0.5]], dtype=float32)

    Args:
        gradient: Gradient of what is to rise.
        start: Points to begin at, shape (rows, ...).
        inputs: Centre of the ball, of the same shape.
        ball: Where points must stay.
        steps: Number of steps, each of one gradient.
        step_size: Size of a step in units of the inputs; 2.5 radii divided by the steps if None.
    """
    size = REACH * ball.radius / max(1, steps) if step_size is None else step_size

    def step(_, points: jax.Array) -> jax.Array:
        moved = points + size * ball.steepest(gradient(points))
        return ball.project(moved, inputs)

    return jax.lax.fori_loop(0, steps, step, start)


def strongest(
    key: Key,
    gradient: Gradient,
    score: Score,
    inputs: jax.Array,
    ball: Ball,
    *,
    steps: int,
    restarts: int,
    step_size: float | jax.Array | None = None,
) -> jax.Array:
    """Climb from several random points, and keep of each row the worst, the given one included.

    Args:
        key: Random key of the starts.
        gradient: Gradient of what is to rise.
        score: How bad each row is.
        inputs: Given rows, shape (rows, ...).
        ball: Where points must stay.
        steps: Number of steps from each start.
        restarts: Number of starts.
        step_size: As in `ascend`.

    Returns:
        The worst points, of the shape of the inputs.
    """

    def attempt(best: tuple[jax.Array, jax.Array], k_start: Key):
        start = ball.random_start(k_start, inputs)
        points = ascend(gradient, start, inputs, ball, steps=steps, step_size=step_size)
        return worse(best, (points, score(points))), None

    first = inputs, score(inputs)
    (points, _), _ = jax.lax.scan(attempt, first, jax.random.split(key, restarts))
    return points


def worse(
    best: tuple[jax.Array, jax.Array], tried: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Of each row the points, and their score, that score higher."""
    (points, score), (other, other_score) = best, tried
    is_worse = other_score > score
    over_row = is_worse.reshape(len(points), *[1] * (points.ndim - 1))
    return jnp.where(over_row, other, points), jnp.where(is_worse, other_score, score)
