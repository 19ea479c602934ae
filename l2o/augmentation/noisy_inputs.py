"""Noise on inputs: every training batch has its own, so that no row is seen twice alike."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from l2o.augmentation.augmented import Augmented, check_is_task, check_range, with_drawn
from l2o.augmentation.noisy_labels import is_rows
from l2o.rng import key_of
from l2o.supervision.supervised import Batch, log_uniform
from l2o.task import Data, Key, Split, Task


def noisy_inputs(task: Task, *, low: float = 0.3, high: float = 2.0) -> Task:
    """Add normal noise to the inputs of each training batch, drawn anew every time.

    A small data set becomes one without end: a network cannot learn its rows by heart, and its loss
    is above zero however long it trains, as on large data. The standard deviation is s times that
    of all training inputs together; s is log-uniform from `low` to `high`, drawn for each instance.
    Batches of other splits are as they were.

    >>> import l2o
    >>> from l2o.tasks.digits import digits_mlp
    >>> l2o.noisy_inputs(digits_mlp().train[0], high=1.0).name
    'digits_mlp_32_varied_noisy_inputs'

    Args:
        task: Task to augment, one of `l2o.supervised` or `l2o.supervised_nnx` whose inputs are
            one array of real numbers; augment it so before anything else that changes batches.
        low: Smallest s, above 0.
        high: Largest s.

    Returns:
        The task; `instance.drawn` is s, a scalar.

    Raises:
        ValueError: If it is no task, or has no such inputs, or `low` and `high` are not a range.
    """
    check_is_task(task, noisy_inputs)
    check_range(low, high, (0.3, 2.0))
    spread, name = spread_of_inputs(task), f"{task.name}_noisy_inputs"

    def batch(key: Key, instance: Augmented, data: Data, split: Split) -> Batch:
        plain = task.batch(key, instance.instance, data, split)
        if split != "train":
            return plain
        noise = jax.random.normal(key_of(key, name), plain.inputs.shape)
        noisy = plain.inputs + instance.drawn * spread * noise
        return plain._replace(inputs=noisy.astype(plain.inputs.dtype))

    draw = lambda key: log_uniform(key, low, high)
    return replace(with_drawn(task, "noisy_inputs", draw), batch=batch)


def spread_of_inputs(task: Task) -> float:
    """Standard deviation of all training inputs of a supervised task.

    Raises:
        ValueError: If the task is not supervised, or its inputs are not one array of real numbers.
    """
    draw = lambda key: task.batch(key, task.sample(key), task.data, "train")
    batch = jax.eval_shape(draw, jax.random.key(0))
    inputs = batch.inputs if isinstance(batch, Batch) and is_rows(task.data) else None
    if not isinstance(inputs, jax.ShapeDtypeStruct) or not jnp.issubdtype(
        inputs.dtype, jnp.floating
    ):
        raise ValueError(
            f"`task` must be one of l2o.supervised with one array of real numbers as inputs; got "
            f"{task.name}, whose batches are otherwise. Apply noisy_inputs first, or leave it out."
        )
    return float(np.std(np.asarray(task.data["train"].inputs, np.float64)))
