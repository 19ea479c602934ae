"""Smaller batches: a fraction of the rows of every training batch counts.

Metz et al. 2022 (VeLO, arXiv:2211.09760) draw the fraction uniformly from 0.01 to 1.
"""

from dataclasses import replace

import jax

from l2o.augmentation.augmented import Augmented, check_is_task, check_range, with_drawn
from l2o.task import Batch, Data, Key, Split, Task


def reduced_batch(task: Task, *, low: float = 0.01, high: float = 1.0) -> Task:
    """Let a fraction of each training batch count, the same throughout an instance.

    The fraction is uniform from `low` to `high`; `Task.shrink` takes it, so shapes stay, and one
    row counts at least. Batches of other splits are whole.

    >>> import l2o
    >>> from l2o.tasks.digits import digits_mlp
    >>> l2o.reduced_batch(digits_mlp().train[0], low=0.1).name
    'digits_mlp_32_varied_reduced_batch'

    Args:
        task: Task to augment, which must have `shrink`.
        low: Smallest fraction, above 0.
        high: Largest fraction, at most 1.

    Returns:
        The task; `instance.drawn` is the fraction, a scalar.

    Raises:
        ValueError: If it is no task, or has no `shrink`, or `low` and `high` are not a range of
            fractions.
    """
    check_is_task(task, reduced_batch)
    check_range(low, high, (0.01, 1.0))
    shrink = task.shrink
    if shrink is None:
        raise ValueError(
            f"`task` must have `shrink`, which lets fewer rows count; got {task.name}, which has "
            "none. Try a task of l2o.supervised without mixes_rows."
        )

    def batch(key: Key, instance: Augmented, data: Data, split: Split) -> Batch:
        whole = task.batch(key, instance.instance, data, split)
        return shrink(whole, instance.drawn) if split == "train" else whole

    def draw(key: Key) -> jax.Array:
        return jax.random.uniform(key, minval=low, maxval=high)

    return replace(with_drawn(task, "reduced_batch", draw), batch=batch)
