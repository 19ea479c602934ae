"""Tasks whose gradients are modified in training, and whose losses are what they were.

The loss of a training batch has a derivative of its own: where f is the loss and m the
modification, the loss is f(φ) and its gradient m(∇f(φ)). Whatever optimizer takes the gradient is
given the modified one. A modification that is random draws from a key in the batch, so that members
of an antithetic pair share it.

Backpropagation through training runs differentiates m, too. It finds the true derivative of a
meta-loss on the steps' own batches and on the validation split. That of a meta-loss measured on
fresh training batches would be modified; `Task.modifies_gradients` lets estimators refuse it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from l2o.augmentation.augmented import Augmented, with_drawn
from l2o.rng import key_of
from l2o.task import Batch, Data, Key, Split, Task

Tree = TypeVar("Tree")


class KeyedBatch(NamedTuple):
    """A batch, and the key of what happens to its gradient.

    Attributes:
        batch: Batch of the task that is augmented.
        key: Random key; None where the gradient is not modified, as on other splits than training.
    """

    batch: Batch
    key: Key | None


def divided_by_largest(tree: Tree) -> tuple[Tree, jax.Array]:
    """Divide float32 arrays by their largest magnitude, so that squares are finite and above 0.

    Returns:
        The arrays, and the magnitude; it is a constant to derivatives, and 1 for zeros.
    """
    magnitudes = [jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree)]
    largest = jax.lax.stop_gradient(jnp.max(jnp.stack(magnitudes)))
    largest = jnp.where(largest == 0, 1.0, largest)
    return jax.tree.map(lambda x: x / largest, tree), largest


def modified_gradients(
    task: Task,
    kind: str,
    modify: Callable[[optax.Updates, Key, Any], optax.Updates],
    draw: Callable[[Key], Any] = lambda key: (),
) -> Task:
    """Modify the gradient of every training batch.

    Args:
        task: Task to augment.
        kind: Augmentation, see `KINDS`.
        modify: Function `(gradient, key, drawn) -> gradient` of the same shapes and dtypes.
        draw: Function `(key) -> drawn`, once for an instance.
    """
    augmented = with_drawn(task, kind, draw)
    all_rows, shrink = augmented.all_rows, task.shrink

    @jax.custom_vjp
    def training_loss(params: optax.Params, batch: KeyedBatch, instance: Augmented) -> jax.Array:
        return task.loss(params, batch.batch, instance.instance)

    def forward(params: optax.Params, batch: KeyedBatch, instance: Augmented):
        value, grads = jax.value_and_grad(task.loss)(params, batch.batch, instance.instance)
        assert batch.key is not None
        return value, modify(grads, batch.key, instance.drawn)

    def backward(grads: optax.Updates, cotangent: jax.Array):
        return jax.tree.map(lambda g: (cotangent * g).astype(g.dtype), grads), None, None

    training_loss.defvjp(forward, backward)

    def loss(params: optax.Params, batch: KeyedBatch, instance: Augmented) -> jax.Array:
        if batch.key is None:
            return task.loss(params, batch.batch, instance.instance)
        return training_loss(params, batch, instance)

    def batch(key: Key, instance: Augmented, data: Data, split: Split) -> KeyedBatch:
        k_own = key_of(key, augmented.name) if split == "train" else None
        return KeyedBatch(task.batch(key, instance.instance, data, split), k_own)

    return replace(
        augmented,
        modifies_gradients=True,
        batch=batch,
        loss=loss,
        metrics=lambda params, batch, instance: task.metrics(
            params, batch.batch, instance.instance
        ),
        all_rows=all_rows
        and (lambda instance, data, split: KeyedBatch(all_rows(instance, data, split), None)),
        shrink=shrink
        and (lambda batch, fraction: batch._replace(batch=shrink(batch.batch, fraction))),
    )
