"""Losses in other units: s f(φ) + c, with s drawn for each instance."""

import math
from dataclasses import replace

import jax
import optax

from l2o.augmentation.augmented import (
    Augmented,
    check_is_task,
    check_numbers,
    check_range,
    with_drawn,
)
from l2o.supervision.supervised import log_uniform
from l2o.task import Batch, Task


def scaled_loss(task: Task, *, low: float = 0.1, high: float = 10.0, offset: float = 0.0) -> Task:
    """Multiply the loss by a scale, and add an offset; gradients are scaled, too.

    The scale s is log-uniform from `low` to `high`, drawn for each instance. Losses of all splits
    are scaled; metrics are the plain task's.

    Instances count in proportion to s in a meta-loss. `loss_scale` is the plain task's times the
    mean of s, so with `Objective(normalize=True)` the task weighs what the plain one does, whatever
    the offset. `loss_cap` is the plain task's at the largest s. With `Objective(summary="log")` and
    no offset the scale adds ln s, the same for all optimizers, as long as losses are far above
    0.001 and below the cap.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> plain = rotated_quadratic(2)
    >>> task = l2o.scaled_loss(plain, low=0.1, high=10.0)
    >>> task.loss_cap / plain.loss_cap, round(task.loss_scale / plain.loss_scale, 3)
    (10.0, 2.15)

    Args:
        task: Task to augment.
        low: Smallest scale, above 0.
        high: Largest scale.
        offset: What is added to the loss, at least 0.

    Returns:
        The task; `instance.drawn` is s, a scalar.

    Raises:
        ValueError: If it is no task, `low` and `high` are not a range, or `offset` is negative or
            not finite.
    """
    check_is_task(task, scaled_loss)
    check_range(low, high, (0.1, 10.0))
    check_numbers(offset=offset)
    if not 0 <= offset < float("inf"):
        raise ValueError(f"`offset` must be at least 0 and finite; got {offset}. Try offset=1.0.")

    def loss(params: optax.Params, batch: Batch, instance: Augmented) -> jax.Array:
        return instance.drawn * task.loss(params, batch, instance.instance) + offset

    width = math.log(high) - math.log(low)
    return replace(
        with_drawn(task, "scaled_loss", lambda key: log_uniform(key, low, high)),
        loss=loss,
        loss_cap=high * task.loss_cap + offset,
        loss_scale=task.loss_scale * ((high - low) / width if width else low),
    )
