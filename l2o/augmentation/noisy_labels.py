"""Wrong labels: part of the training rows have a class drawn at random, for good.

The noise of Zhang et al. 2017 (arXiv:1611.03530): independently of the others, a label is with a
certain probability that of a class drawn uniformly, the true one among them.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o.augmentation.augmented import Augmented, check_is_task, check_range, with_drawn
from l2o.supervision.supervised import SPLITS, Batch, Rows, num_rows
from l2o.task import Data, Key, Split, Task


class LabelNoise(NamedTuple):
    """What decides which labels of an instance are wrong.

    Attributes:
        seed: Seed of all draws, a uint32 scalar.
        fraction: Probability that a label is replaced, a scalar.
    """

    seed: jax.Array
    fraction: jax.Array


def noisy_labels(task: Task, *, low: float = 0.0, high: float = 0.5) -> Task:
    """Replace a fraction of the training labels by classes drawn uniformly.

    The fraction is uniform from `low` to `high`, drawn for each instance; of K classes (K - 1)/K of
    the replaced labels are wrong. A row has the same label whenever an instance meets it, and so
    has each position of a sequence. Labels of other splits are true.

    There are as many classes as the largest label of all splits and one: classes above it are never
    drawn. Integers that are no classes, as of counts to be regressed, are not told apart.

    >>> import l2o
    >>> from l2o.tasks.digits import digits_mlp
    >>> l2o.noisy_labels(digits_mlp().train[0], high=0.2).name
    'digits_mlp_32_varied_noisy_labels'

    Args:
        task: Task to augment, one of `l2o.supervised` or `l2o.supervised_nnx` whose targets are
            one array of class indices; it may be reparametrized, or have a reduced batch.
        low: Smallest fraction, at least 0.
        high: Largest fraction, at most 1.

    Returns:
        The task; `instance.drawn` is a `LabelNoise`.

    Raises:
        ValueError: If it is no task, or has no such labels, or `low` and `high` are not a range of
            fractions.
    """
    check_is_task(task, noisy_labels)
    check_range(low, high, (0.1, 0.5), above=False)
    num_classes = num_classes_of(task)
    task_all_rows = task.all_rows

    def with_noise(batch: Batch, noise: LabelNoise) -> Batch:
        k_labels = jax.random.key(noise.seed)
        inputs, numbers = batch.inputs

        def label(number: jax.Array, true: jax.Array) -> jax.Array:
            key = jax.random.fold_in(k_labels, number)
            is_noisy, drawn = jax.random.uniform(key, (2, *true.shape))
            random = jnp.minimum(num_classes * drawn, num_classes - 1).astype(true.dtype)
            return jnp.where(is_noisy < noise.fraction, random, true)

        return batch._replace(inputs=inputs, targets=jax.vmap(label)(numbers, batch.targets))

    def batch(key: Key, instance: Augmented, data: Data, split: Split) -> Batch:
        if split != "train":
            return task.batch(key, instance.instance, data, split)
        drawn = task.batch(key, instance.instance, numbered(data), split)
        return with_noise(drawn, instance.drawn)

    def all_rows(instance: Augmented, data: Data, split: Split) -> Batch:
        assert task_all_rows is not None
        if split != "train":
            return task_all_rows(instance.instance, data, split)
        return with_noise(task_all_rows(instance.instance, numbered(data), split), instance.drawn)

    def draw(key: Key) -> LabelNoise:
        k_seed, k_fraction = jax.random.split(key)
        return LabelNoise(
            jax.random.bits(k_seed), jax.random.uniform(k_fraction, minval=low, maxval=high)
        )

    return replace(
        with_drawn(task, "noisy_labels", draw), batch=batch, all_rows=task_all_rows and all_rows
    )


def num_classes_of(task: Task) -> int:
    """Number of classes of a supervised task, the largest label of all splits and one.

    Raises:
        ValueError: If the task is not supervised, or its targets are no class indices.
    """
    if not is_rows(task.data) or not keeps_numbers(task):
        raise ValueError(
            f"`task` must be one of l2o.supervised; got {task.name}, whose batches are otherwise. "
            "Apply noisy_labels first, before what changes batches or gradients."
        )
    targets = [np.asarray(x) for split in SPLITS for x in jax.tree.leaves(task.data[split].targets)]
    is_index = all(x.dtype.kind in "iu" and x.min() >= 0 for x in targets)
    if len(targets) != len(SPLITS) or not is_index:
        least, most = min(x.min() for x in targets), max(x.max() for x in targets)
        raise ValueError(
            "`task` must have one array of class indices, integers from 0, as targets; got "
            f"{task.name}, which has "
            f"{', '.join(f'{x.dtype}{list(x.shape)}' for x in targets[: len(targets) // 3])} from "
            f"{least} to {most}. Leave noisy_labels out."
        )
    return int(max(x.max() for x in targets)) + 1


def numbered(data: Data) -> Data:
    """Training rows with their number as a further input."""
    rows = data["train"]
    numbers = jnp.arange(num_rows(rows), dtype=jnp.int32)
    return {**data, "train": rows._replace(inputs=(rows.inputs, numbers))}


def keeps_numbers(task: Task) -> bool:
    """Whether training batches come with the numbers of their rows when rows are numbered."""

    def draw(key: Key, data: Data) -> list[Batch]:
        instance = task.sample(key)
        drawn = task.batch(key, instance, data, "train")
        return [drawn] + ([task.all_rows(instance, data, "train")] if task.all_rows else [])

    key = jax.random.key(0)
    if not all(isinstance(batch, Batch) for batch in jax.eval_shape(draw, key, task.data)):
        return False
    try:
        batches = jax.eval_shape(draw, key, numbered(task.data))
        numbers = [batch.inputs[1] for batch in batches if len(batch.inputs) == 2]
        rows = [jax.tree.leaves(batch.targets)[0].shape[0] for batch in batches]
    except Exception:  # of a batch that was replaced by what takes inputs for one array
        return False
    return [(str(x.dtype), x.shape) for x in numbers] == [("int32", (n,)) for n in rows]


def is_rows(data: Data) -> bool:
    """Whether data are the rows of each split, as `l2o.supervised` keeps them."""
    return isinstance(data, Mapping) and all(isinstance(data.get(s), Rows) for s in SPLITS)
