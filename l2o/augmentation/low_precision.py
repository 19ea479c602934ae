"""Low precision: parameters that are stored and updated in bfloat16.

Metz et al. 2022 (VeLO, arXiv:2211.09760) meta-train on such tasks, too; theirs compute in bfloat16
besides.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax

from l2o.augmentation.augmented import check_is_task, params_of, renamed
from l2o.task import Batch, Instance, Key, Task


def low_precision(task: Task) -> Task:
    """Store parameters in bfloat16, which has 8 significant bits; gradients are bfloat16, too.

    The loss is computed as before, of parameters widened to what they were: at the same parameters
    it is the plain task's. An optimizer's updates are rounded to bfloat16 when they are applied, so
    those below 1/500 of a parameter are lost. Apply it after `reparametrized`, which would round
    the parameters that the loss is computed of once more.

    >>> import jax
    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> task = l2o.low_precision(rotated_quadratic(2))
    >>> task.init(jax.random.key(0), task.sample(jax.random.key(1)))["x"].dtype
    dtype(bfloat16)

    Args:
        task: Task to augment.

    Raises:
        ValueError: If it is no task.
    """
    check_is_task(task, low_precision)
    shapes = params_of(task)

    def widened(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda p, shape: p.astype(shape.dtype), params, shapes)

    def init(key: Key, instance: Instance) -> optax.Params:
        return jax.tree.map(lambda p: p.astype(jnp.bfloat16), task.init(key, instance))

    def loss(params: optax.Params, batch: Batch, instance: Instance) -> jax.Array:
        return task.loss(widened(params), batch, instance)

    def metrics(params: optax.Params, batch: Batch, instance: Instance):
        return task.metrics(widened(params), batch, instance)

    return replace(renamed(task, "low_precision"), init=init, loss=loss, metrics=metrics)
