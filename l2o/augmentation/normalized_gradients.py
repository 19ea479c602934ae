"""Gradients of length 1: g / |g|, over all parameters together.

Metz et al. 2022 (VeLO, arXiv:2211.09760) meta-train on such tasks, too.
"""

import jax
import jax.numpy as jnp
import optax

from l2o.augmentation.augmented import check_is_task
from l2o.augmentation.modified_gradients import divided_by_largest, modified_gradients
from l2o.task import Key, Task


def normalized_gradients(task: Task) -> Task:
    """Divide the gradient of each training batch by its Euclidean norm over all parameters.

    The loss stays what it is, and a gradient of zero is zero.

    Backpropagation through training runs finds the gradient of meta-losses on the steps' own
    batches and on the validation split. With `Objective(measure_on="train")`, where it would not,
    estimators refuse it.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> l2o.normalized_gradients(rotated_quadratic(2)).name
    'quadratic_2_normalized_gradients'

    Args:
        task: Task to augment.

    Raises:
        ValueError: If it is no task.
    """
    check_is_task(task, normalized_gradients)

    def modify(grads: optax.Updates, key: Key, drawn: tuple[()]) -> optax.Updates:
        del key, drawn
        wide = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        wide, _ = divided_by_largest(wide)
        square = optax.tree.norm(wide, squared=True)
        norm = jnp.sqrt(jnp.where(square == 0, 1.0, square))
        return jax.tree.map(lambda g, plain: (g / norm).astype(plain.dtype), wide, grads)

    return modified_gradients(task, "normalized_gradients", modify)
