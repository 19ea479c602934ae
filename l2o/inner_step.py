"""One step of an inner training run: a batch, the loss and its gradient, an update."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from l2o.task import Batch, Data, Instance, Key, Shared, Task

Tree = TypeVar("Tree")


def inner_step(
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    key: Key,
    params: optax.Params,
    opt_state: optax.OptState,
    instance: Instance,
    data: Data,
    *,
    fraction: jax.Array | None = None,
    own_batch: bool = False,
) -> tuple[optax.Params, optax.OptState, jax.Array, Batch]:
    """Train a task for one step.

    Args:
        task: Task to train.
        tx: Optimizer, which is given the loss as `value`.
        key: Random key of the batch.
        params: Parameters before the step.
        opt_state: State of the optimizer before the step.
        instance: Sampled problem.
        data: Data of the task.
        fraction: Fraction of the batch that counts; by default the one that the optimizer chooses,
            see `batch_fraction`.
        own_batch: Whether members of a population multiply by batches of their own, see
            `batch_per_member`.

    Returns:
        Parameters and optimizer state after the update, the loss before it, and the batch.
    """
    fraction = batch_fraction(opt_state) if fraction is None else fraction
    batch = training_batch(task, key, instance, data, fraction)
    batch = batch_per_member(batch, params) if own_batch else batch
    loss, grads = jax.value_and_grad(task.loss)(params, batch, instance)
    updates, opt_state = tx.update(grads, opt_state, params, value=loss)
    return optax.apply_updates(params, updates), opt_state, loss, batch


def batch_fraction(opt_state: optax.OptState) -> jax.Array | None:
    """Read the fraction of its batch that an optimizer wants to count at the next step.

    >>> import jax.numpy as jnp, l2o, optax
    >>> l2o.batch_fraction(optax.adam(0.1).init(jnp.zeros(2))) is None
    True

    Args:
        opt_state: State of any optax transformation.

    Returns:
        A float32 scalar in (0, 1]; None if the optimizer does not choose.
    """
    found = optax.tree.get_all_with_path(opt_state, "batch_fraction")
    return next((value for _, value in found if not isinstance(value, tuple)), None)


def training_batch(
    task: Task, key: Key, instance: Instance, data: Data, fraction: jax.Array | None
) -> Batch:
    """Draw a training batch of which a fraction counts, all of it if that is None.

    Raises:
        ValueError: If there is a fraction and the task has no `shrink`.
    """
    batch = task.batch(key, instance, data, "train")
    if fraction is None:
        return batch
    check_shrinks(task)
    assert task.shrink is not None
    return task.shrink(batch, fraction)


def check_shrinks(task: Task) -> None:
    """Raise a `ValueError` that says what to do unless the task's batches can be smaller."""
    if task.shrink is None:
        raise ValueError(
            f"`task` must have `shrink` for an optimizer that chooses the size of batches; got "
            f"{task.name}, which has none. Drop the hyperparameter batch_fraction."
        )


def batch_per_member(batch: Tree, params: optax.Params) -> Tree:
    """Give the batch an axis of its own wherever `vmap` gives the parameters one.

    Members of an antithetic pair train on one batch. Where it is an operand that they share, XLA
    multiplies it by the weights of both side by side, and copies weights and gradients to and fro
    for that. What is `Shared` stays so.

    Args:
        batch: Tree of arrays of any kind.
        params: Parameters that are trained on the batch.
    """
    leaves = [x for x in jax.tree.leaves(params) if jnp.size(x)]
    if not leaves:
        return batch
    either = jnp.ravel(leaves[0])[0] > 0  # XLA drops a selection between equals
    is_shared = lambda x: isinstance(x, Shared)
    own = lambda x: x if is_shared(x) else jnp.where(either, x, x)
    return jax.tree.map(own, batch, is_leaf=is_shared)
