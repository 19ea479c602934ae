"""Functions of the benchmark BBOB, as evosax has them, by their gradients."""

import functools

import jax
import jax.numpy as jnp
from evosax.problems.bbob.bbob_fns import bbob_fns

from l2o import Key, Task, TaskFamily
from l2o.tasks.families import sized_family
from l2o.tasks.quadratic import random_rotation

META_TRAINED = ("rosenbrock", "rosenbrock_rotated", "schwefel")
"""Functions that are meta-trained on."""

HELD_OUT = ("sphere", "griewank_rosenbrock", "lunacek", "katsuura")
"""Functions that are reported on and never meta-trained on.

Others of the 24 are left out: the gradients of evosax's functions are not finite at the optimum,
or where a coordinate is that of the optimum or below it, and a step has no slope.
"""

RANGE = 4.0
"""Optima and starting points lie between minus this and this; BBOB's box ends at 5."""

NUM_STARTS = 256
"""Starting points whose mean value is the unit of a function."""


def draw_instance(key: Key, dim: int) -> dict[str, jax.Array]:
    """Draw an optimum, shape (dim,), and two rotations, shape (dim, dim)."""
    k_optimum, k_first, k_second = jax.random.split(key, 3)
    return {
        "optimum": jax.random.uniform(k_optimum, (dim,), minval=-RANGE, maxval=RANGE),
        "first_rotation": random_rotation(k_first, dim),
        "second_rotation": random_rotation(k_second, dim),
    }


def draw_start(key: Key, dim: int) -> dict[str, jax.Array]:
    """Draw where a run starts, shape (dim,)."""
    return {"x": jax.random.uniform(key, (dim,), minval=-RANGE, maxval=RANGE)}


def value(function: str, x: jax.Array, instance: dict[str, jax.Array]) -> jax.Array:
    """The value of a function at x, shape (dim,), above that at its optimum; a scalar."""
    rotations = instance["first_rotation"], instance["second_rotation"]
    return bbob_fns[function](x, instance["optimum"], *rotations, len(x))[0]


@functools.cache
def mean_at_starts(function: str, dim: int) -> float:
    """The unit of a function: its mean over `NUM_STARTS` instances and starts."""

    def at_start(key: Key) -> jax.Array:
        k_instance, k_start = jax.random.split(key)
        start = draw_start(k_start, dim)["x"]
        return value(function, start, draw_instance(k_instance, dim))

    keys = jax.random.split(jax.random.key(0), NUM_STARTS)
    return float(jnp.mean(jax.jit(jax.vmap(at_start))(keys)))


def bbob_function(name: str, function: str, *, dim: int = 10, family: str = "") -> Task:
    """A function of BBOB (Hansen et al. 2009), over its mean at starting points.

    An instance draws optimum and rotations. Nothing is random in a batch; `l2o.noisy_gradients`
    adds what is. The boundary's penalty and the value at the optimum are left out, so the least
    loss is 0 or, of functions that evosax shifts, close to it.

    >>> task = bbob_function("sphere", "sphere", dim=2)
    >>> task.loss_scale
    1.0

    Args:
        name: Name of the task.
        function: Name of the function in `evosax.problems.bbob.bbob_fns`.
        dim: Number of parameters, at least 2.
        family: Name that variants of the task share; empty for the task's own name.

    Raises:
        ValueError: If there is no such function, or `dim` < 2.
    """
    if function not in bbob_fns:
        raise ValueError(
            f"`function` must be one of BBOB's; got {function}. Try {', '.join(META_TRAINED)}."
        )
    if dim < 2:
        raise ValueError(f"`dim` must be at least 2; got {dim}. Try dim=10.")

    unit = mean_at_starts(function, dim)

    def loss(params, batch, instance):
        del batch
        return value(function, params["x"], instance) / unit

    return Task(
        name=name,
        family=family,
        sample=lambda key: draw_instance(key, dim),
        init=lambda key, instance: draw_start(key, dim),
        batch=lambda key, instance, data, split: (),
        loss=loss,
        loss_cap=10.0,
        loss_scale=1.0,
    )


def bbob() -> TaskFamily:
    """Functions of the black-box optimization benchmark BBOB in ten dimensions."""

    def make(name: str, function: str, varied: bool) -> Task:
        del varied  # every instance is a function of its own
        return bbob_function(name, function, family=f"bbob_{function}")

    return sized_family("bbob", make, {f: f for f in META_TRAINED}, {f: f for f in HELD_OUT})
