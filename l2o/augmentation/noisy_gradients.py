"""Noise on gradients: g + s rms(g) ε with ε normal, independent at every parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.augmentation.augmented import check_is_task, check_range
from l2o.augmentation.modified_gradients import divided_by_largest, modified_gradients
from l2o.supervision.supervised import log_uniform
from l2o.task import Key, Task


def noisy_gradients(task: Task, *, low: float = 0.01, high: float = 1.0) -> Task:
    """Add normal noise to the gradient of each training batch, whose loss stays what it is.

    Its standard deviation is s times the root mean square of the gradient of the same array, so it
    has the gradient's units and vanishes where that does; s is log-uniform from `low` to `high`,
    drawn for each instance. In the mean the gradient is the plain one.

    Backpropagation through training runs finds the gradient of meta-losses on the steps' own
    batches and on the validation split. With `Objective(measure_on="train")`, where it would not,
    estimators refuse it.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> l2o.noisy_gradients(rotated_quadratic(2)).name
    'quadratic_2_noisy_gradients'

    Args:
        task: Task to augment.
        low: Smallest s, above 0.
        high: Largest s.

    Returns:
        The task; `instance.drawn` is s, a scalar.

    Raises:
        ValueError: If it is no task, or `low` and `high` are not a range.
    """
    check_is_task(task, noisy_gradients)
    check_range(low, high, (0.01, 2.0))

    def modify(grads: optax.Updates, key: Key, std: jax.Array) -> optax.Updates:
        leaves, structure = jax.tree.flatten(grads)
        ends = np.cumsum([g.size for g in leaves])
        normal = jnp.split(jax.random.normal(key, (int(ends[-1]),)), ends[:-1])
        return structure.unflatten(
            [
                (g + std * root_mean_square(g) * noise.reshape(g.shape)).astype(g.dtype)
                for g, noise in zip(leaves, normal, strict=True)
            ]
        )

    return modified_gradients(
        task, "noisy_gradients", modify, lambda key: log_uniform(key, low, high)
    )


def root_mean_square(x: jax.Array) -> jax.Array:
    """A float32 scalar, with a derivative of zero at zero."""
    x, largest = divided_by_largest(x.astype(jnp.float32))
    mean = jnp.mean(jnp.square(x))
    return largest * jnp.where(mean == 0, 0.0, jnp.sqrt(jnp.where(mean == 0, 1.0, mean)))
