"""Where training runs start: what all optimizers share of an instance, parameters and batches."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.rng import key_of
from l2o.task import Batch, Data, Instance, Key, Split, Task, batch_axes, validate_task

NUM_BATCHES = 8
"""Batches of a probe of the training loss, and of what a task without `all_rows` is tested on."""


class Start(NamedTuple):
    """A seed's part of a run, the same for every optimizer.

    Attributes:
        instance: The sampled problem.
        params: Its initial parameters.
        probes: Fixed training batches, `NUM_BATCHES` stacked.
        valids: Validation batches, `NUM_BATCHES` stacked; () for a task with `all_rows`, unless it
            is to be validated along the way.
        tests: Test batches, likewise; () for a task with `all_rows`.
        key: Key that the batches of the training run derive from, step by step.
    """

    instance: Instance
    params: optax.Params
    probes: Batch
    valids: Batch
    tests: Batch
    key: Key


def draw_starts(key: Key, task: Task, num_seeds: int, *, validated: bool = False) -> Start:
    """Draw the starts of `num_seeds` runs, stacked along a first axis.

    Args:
        key: Random key.
        task: Task to train.
        num_seeds: Number of runs.
        validated: Whether a task with `all_rows` has validation batches, too.

    Raises:
        ValueError: If `num_seeds` < 1 or the task is malformed.
    """
    if num_seeds < 1:
        raise ValueError(f"`num_seeds` must be at least 1; got {num_seeds}. Try num_seeds=16.")
    validate_task(task)

    return compiled_draw(task, validated)(key, jnp.arange(num_seeds), task.data)


@functools.lru_cache(maxsize=4)
def compiled_draw(task: Task, validated: bool) -> Callable[[Key, jax.Array, Data], Start]:
    """Make `(key, seeds, data) -> starts`; kept, as tuning and reporting draw from one task."""

    def draw(key: Key, seed: jax.Array, data: Data) -> Start:
        k_instance, k_params, k_probes, k_tests, k_train = jax.random.split(
            jax.random.fold_in(key, seed), 5
        )
        instance = task.sample(k_instance)

        def batches(k_split: Key, split: Split) -> Batch:
            one = lambda k: task.batch(k, instance, data, split)
            axes = batch_axes(jax.eval_shape(one, k_split))
            return jax.vmap(one, out_axes=axes)(jax.random.split(k_split, NUM_BATCHES))

        return Start(
            instance=instance,
            params=task.init(k_params, instance),
            probes=batches(k_probes, "train"),
            valids=batches(key_of(k_tests, "valid"), "valid")
            if validated or not task.all_rows
            else (),
            tests=() if task.all_rows else batches(k_tests, "test"),
            key=k_train,
        )

    return jax.jit(jax.vmap(draw, in_axes=(None, 0, None)))
