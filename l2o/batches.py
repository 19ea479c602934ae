"""Batches: of a size that the optimizer chooses, and those that members of a population share."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from l2o.task import Batch, Data, Instance, Key, Task


def batch_fraction(opt_state: optax.OptState) -> jax.Array | None:
    """The fraction of its batch that an optimizer wants to count at the next step.

    Args:
        opt_state: state of any optax transformation.

    Returns:
        A float32 scalar in (0, 1]; None if the optimizer does not choose.
    """
    found = optax.tree.get_all_with_path(opt_state, "batch_fraction")
    return next((value for _, value in found if not isinstance(value, tuple)), None)


def training_batch(
    task: Task, key: Key, instance: Instance, data: Data, fraction: jax.Array | None
) -> Batch:
    """A training batch of which a fraction counts, all of it if that is None.

    Raises:
        ValueError: if there is a fraction and the task has no `shrink`.
    """
    batch = task.batch(key, instance, data, "train")
    if fraction is None:
        return batch
    check_shrinks(task)
    assert task.shrink is not None
    return task.shrink(batch, fraction)


Tree = TypeVar("Tree")


def of_each(batch: Tree, params: optax.Params) -> Tree:
    """The same batch, with an axis of its own wherever `vmap` gives the parameters one.

    Members of an antithetic pair train on one batch. Where it is an operand that they share, XLA
    multiplies it by the weights of both side by side, and copies weights and gradients to and fro
    for that.

    Args:
        batch: any tree of arrays.
        params: those that are trained on it.
    """
    leaves = [x for x in jax.tree.leaves(params) if jnp.size(x)]
    if not leaves:
        return batch
    either = jnp.ravel(leaves[0])[0] > 0  # XLA drops a selection between equals
    return jax.tree.map(lambda x: jnp.where(either, x, x), batch)


def check_shrinks(task: Task) -> None:
    """Raises a `ValueError` that says what to do unless the task's batches can be smaller."""
    if task.shrink is None:
        raise ValueError(
            f"`task` must have `shrink` for an optimizer that chooses the size of batches; got "
            f"{task.name}, which has none. Drop the knob batch_fraction."
        )
