"""Inputs within a distance of given ones, and within the range of the data."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from l2o.task import Key

Norm = Literal["linf", "l2"]
"""Distance of a row from where it was: the largest change of a number, or the Euclidean one."""


@dataclass(frozen=True)
class Ball:
    """Rows that an attack may choose: near the given ones, and within the range of the data.

    A given row that lies outside of the range may stay where it is; it is not to leave further.

    >>> import jax.numpy as jnp
    >>> ball = Ball("linf", radius=0.25, low=0.0, high=1.0)
    >>> ball.project(jnp.array([[0.9, 0.1]]), jnp.array([[0.5, 0.0]])).tolist()
    [[0.75, 0.10000000149011612]]

    Attributes:
        norm: Norm of the ball, over all numbers of a row.
        radius: Radius, in units of the inputs.
        low: Least value of a number.
        high: Largest value of a number.

    Raises:
        ValueError: If there is no such norm, the radius is not above 0 and finite, or the range is
            empty.
    """

    norm: Norm
    radius: float
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise ValueError(
                f"`norm` must be one of {', '.join(get_args(Norm))}; got {self.norm!r}. Try linf."
            )
        if not 0 < self.radius < math.inf:
            raise ValueError(
                f"`radius` must be above 0 and finite; got {self.radius:g}. Try radius=0.03."
            )
        if not self.low < self.high:
            raise ValueError(
                f"`low` and `high` must be the range of the inputs; got low={self.low:g}, "
                f"high={self.high:g}. Try low=0.0, high=1.0."
            )

    def project(self, points: jax.Array, centre: jax.Array) -> jax.Array:
        """Move points into the ball, then into the range, which leaves them in the ball.

        Args:
            points: Rows to move, shape (rows, ...).
            centre: Given rows, of the same shape.
        """
        offset = points - centre
        if self.norm == "linf":
            offset = jnp.clip(offset, -self.radius, self.radius)
        else:
            offset = offset * jnp.minimum(1.0, self.radius / row_lengths(offset))
        return jnp.clip(centre + offset, *self._range(centre)).astype(centre.dtype)

    def random_start(self, key: Key, centre: jax.Array) -> jax.Array:
        """Draw points uniformly from the ball, and move them into the range.

        Args:
            key: Random key.
            centre: Given rows, shape (rows, ...).
        """
        if self.norm == "linf":
            offset = jax.random.uniform(key, centre.shape, minval=-1.0, maxval=1.0)
        else:
            k_direction, k_length = jax.random.split(key)
            direction = jax.random.normal(k_direction, centre.shape)
            uniform = jax.random.uniform(k_length, row_shape(centre))
            lengths = uniform ** (1.0 / max(1, math.prod(centre.shape[1:])))
            offset = direction * lengths / row_lengths(direction)
        return self.project(centre + self.radius * offset.astype(centre.dtype), centre)

    def steepest(self, gradient: jax.Array) -> jax.Array:
        """Find the direction of length 1 in which a linear function rises most, in each row.

        Where the gradient is zero, it is zero.

        Args:
            gradient: Gradient with respect to the points, shape (rows, ...).
        """
        if self.norm == "linf":
            return jnp.sign(gradient)
        return gradient / row_lengths(gradient)

    def stay(self, direction: jax.Array, points: jax.Array, centre: jax.Array) -> jax.Array:
        """Drop what would lead out, of a direction at points on the surface or beyond it.

        Args:
            direction: Direction of movement, shape (rows, ...).
            points: Where it starts.
            centre: Given rows.
        """
        low, high = self._range(centre)
        if self.norm == "linf":
            low, high = (
                jnp.maximum(low, centre - self.radius),
                jnp.minimum(high, centre + self.radius),
            )
        else:
            offset = points - centre
            normal = offset / row_lengths(offset)
            axes = tuple(range(1, centre.ndim))
            outward = jnp.sum(direction * normal, axis=axes, keepdims=True)
            is_out = (row_lengths(offset) >= self.radius) & (outward > 0)
            direction = jnp.where(is_out, direction - outward * normal, direction)
        leaves = ((points >= high) & (direction > 0)) | ((points <= low) & (direction < 0))
        return jnp.where(leaves, 0.0, direction).astype(direction.dtype)

    def _range(self, centre: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jnp.minimum(self.low, centre), jnp.maximum(self.high, centre)


def row_shape(rows: jax.Array) -> tuple[int, ...]:
    """Shape of one number a row, that broadcasts to the rows."""
    return (len(rows), *[1] * (rows.ndim - 1))


def row_lengths(rows: jax.Array) -> jax.Array:
    """Euclidean length of each row, of shape (rows, 1, ...), and at least a number above 0.

    Gradients of a confident network are so small that their squares would be zero.
    """
    axes = tuple(range(1, rows.ndim))
    largest = jnp.max(jnp.abs(rows), axis=axes, keepdims=True, initial=jnp.finfo(rows.dtype).tiny)
    squares = jnp.sum(jnp.square(rows / largest), axis=axes, keepdims=True)
    return largest * jnp.maximum(jnp.sqrt(squares), 1.0)
