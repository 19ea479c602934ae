"""Losses in other units: s f(φ) + c, with s drawn for each instance."""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.augmentation.augmented import Augmented, check_range, with_drawn
from l2o.supervision.supervised import log_uniform
from l2o.task import Batch, Data, Key, Split, Task


class ScaledBatch(NamedTuple):
    """A batch, and the units of its loss.

    Attributes:
        batch: Batch of the task that is augmented.
        scale: Factor of the loss, a scalar; 1 on other splits than training.
        offset: What is added to it, a scalar; 0 on other splits.
    """

    batch: Batch
    scale: jax.Array
    offset: jax.Array


def scaled_loss(task: Task, *, low: float = 0.1, high: float = 10.0, offset: float = 0.0) -> Task:
    """Multiply the training loss by a scale, and add an offset; gradients are scaled, too.

    The scale s is log-uniform from `low` to `high`, drawn for each instance. Losses of other splits
    are the plain task's, and so are metrics.

    A meta-loss of training batches has the scale in it: with `Objective(summary="log")` it adds
    ln s, the same for all optimizers; with others, instances count in proportion to s, unless the
    validation split is measured. `loss_cap` and `loss_scale` are those of the plain task at the
    largest s and at the geometric mean of `low` and `high`, plus the offset.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> plain = rotated_quadratic(2)
    >>> task = l2o.scaled_loss(plain, low=0.1, high=10.0)
    >>> task.loss_cap / plain.loss_cap, round(task.loss_scale / plain.loss_scale, 6)
    (10.0, 1.0)

    Args:
        task: Task to augment.
        low: Smallest scale, above 0.
        high: Largest scale.
        offset: What is added to the loss, at least 0.

    Returns:
        The task; `instance.drawn` is s, a scalar.

    Raises:
        ValueError: If `low` and `high` are not a range, or `offset` is negative or not finite.
    """
    check_range(low, high, (0.1, 10.0))
    if not 0 <= offset < float("inf"):
        raise ValueError(f"`offset` must be at least 0 and finite; got {offset}. Try offset=1.0.")
    augmented = with_drawn(task, "scaled_loss", lambda key: log_uniform(key, low, high))
    all_rows, shrink = augmented.all_rows, task.shrink

    def in_units(batch: Batch, instance: Augmented, split: Split) -> ScaledBatch:
        if split != "train":
            return ScaledBatch(batch, jnp.float32(1.0), jnp.float32(0.0))
        return ScaledBatch(batch, instance.drawn, jnp.float32(offset))

    def batch(key: Key, instance: Augmented, data: Data, split: Split) -> ScaledBatch:
        return in_units(task.batch(key, instance.instance, data, split), instance, split)

    def loss(params: optax.Params, batch: ScaledBatch, instance: Augmented) -> jax.Array:
        plain = task.loss(params, batch.batch, instance.instance)
        return batch.scale * plain + batch.offset

    return replace(
        augmented,
        batch=batch,
        loss=loss,
        loss_cap=max(high, 1.0) * task.loss_cap + offset,
        loss_scale=(low * high) ** 0.5 * task.loss_scale + offset,
        metrics=lambda params, batch, instance: task.metrics(
            params, batch.batch, instance.instance
        ),
        all_rows=all_rows
        and (
            lambda instance, data, split: in_units(all_rows(instance, data, split), instance, split)
        ),
        shrink=shrink
        and (lambda batch, fraction: batch._replace(batch=shrink(batch.batch, fraction))),
    )
