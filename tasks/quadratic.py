"""Closed-form problems whose optimum is known."""

import jax
import jax.numpy as jnp

from l2o import Key, Task


def rotated_quadratic(dim: int = 10, *, noise: float = 0.1, log10_condition: float = 2.0) -> Task:
    """Noisy rotated quadratics f(x) = ½ Σᵢ hᵢ ((R (x - x*))ᵢ)², with minimum 0 at x*.

    An instance draws a rotation R, curvatures h log-uniform over `log10_condition` decades up to
    1, and x* from a unit normal. A batch shifts x* by noise, as sampled data would.

    >>> import jax
    >>> task = rotated_quadratic(dim=3)
    >>> sorted(task.sample(jax.random.key(0)))
    ['curvature', 'minimum', 'rotation']

    Args:
        dim: Number of parameters.
        noise: Standard deviation of a batch's shift of the minimum.
        log10_condition: Number of decades between the smallest and the largest curvature.

    Raises:
        ValueError: If `dim` < 1 or `noise` < 0.
    """
    if dim < 1:
        raise ValueError(f"`dim` must be at least 1; got {dim}. Try dim=10.")
    if noise < 0:
        raise ValueError(f"`noise` must not be negative; got {noise}. Try noise=0.1.")

    def sample(key: Key):
        k_curvature, k_rotation, k_minimum = jax.random.split(key, 3)
        exponent = jax.random.uniform(k_curvature, (dim,), minval=-log10_condition, maxval=0.0)
        return {
            "curvature": 10.0**exponent,
            "rotation": random_rotation(k_rotation, dim),
            "minimum": jax.random.normal(k_minimum, (dim,)),
        }

    def init(key: Key, instance):
        del instance
        return {"x": jax.random.normal(key, (dim,))}

    def batch(key: Key, instance, data, split):
        del instance, data, split
        return noise * jax.random.normal(key, (dim,))

    def loss(params, shift, instance):
        away = instance["rotation"] @ (params["x"] - instance["minimum"] - shift)
        return 0.5 * jnp.sum(instance["curvature"] * jnp.square(away))

    def metrics(params, shift, instance):
        del shift
        away = params["x"] - instance["minimum"]
        return {"distance_to_minimum": jnp.linalg.norm(away)}

    return Task(
        name=f"quadratic_{dim}",
        family="quadratic",
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        loss_cap=2.0 * dim,
        metrics=metrics,
        metric_caps={"distance_to_minimum": 10.0 * dim**0.5},
        loss_scale=0.2 * dim,
    )


def random_rotation(key: Key, dim: int) -> jax.Array:
    """An orthogonal matrix, uniform over all (Haar), shape (dim, dim).

    The product of Householder reflections of normal vectors (Stewart 1980). It calls no LAPACK, as
    `jax.random.orthogonal` does: large batches of those can wait for each other for ever where XLA
    has two threads (jaxlib 0.10).
    """
    axis = jnp.arange(dim)

    def reflect(q: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        i, x = step
        x = jnp.where(axis < i, 0.0, x)
        sign = jnp.where(x[i] < 0, -1.0, 1.0)
        v = x + sign * jnp.linalg.norm(x) * (axis == i)
        return q - 2.0 * jnp.outer(q @ v, v) / jnp.sum(v * v), -sign

    start = jnp.eye(dim)
    q, signs = jax.lax.scan(reflect, start, (axis, jax.random.normal(key, (dim, dim))))
    return q * signs


def rosenbrock(*, noise: float = 0.0) -> Task:
    """Rosenbrock's valley f(x, y) = (1 - x)² + b (y - x²)², with minimum 0 at (1, 1).

    An instance draws b log-uniform from 1 to 100; a batch adds gradient noise by a linear term.

    >>> rosenbrock(noise=0.1).name
    'rosenbrock'

    Args:
        noise: Standard deviation of the gradient noise.
    """

    def sample(key: Key):
        return {"steepness": 10.0 ** jax.random.uniform(key, minval=0.0, maxval=2.0)}

    def init(key: Key, instance):
        del instance
        return {"xy": jnp.array([-1.0, 1.0]) + 0.5 * jax.random.normal(key, (2,))}

    def batch(key: Key, instance, data, split):
        del instance, data, split
        return noise * jax.random.normal(key, (2,))

    def loss(params, tilt, instance):
        x, y = params["xy"]
        valley = jnp.square(1.0 - x) + instance["steepness"] * jnp.square(y - jnp.square(x))
        return valley + tilt @ params["xy"]

    return Task(
        name="rosenbrock",
        sample=sample,
        init=init,
        batch=batch,
        loss=loss,
        loss_cap=1e4,
        loss_scale=10.0,
    )
