"""Inputs of a task's batches, and what a batch's loss and metrics are row by row."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.adversarial.ball import Ball, Norm
from l2o.augmentation.augmented import check_is_task, check_numbers
from l2o.augmentation.noisy_labels import is_rows
from l2o.supervision.supervised import Batch as Rows
from l2o.task import Batch, Instance, Task

WRONG = 1e4
"""What a row that is wrong scores beside its loss, so that no right one scores as high."""


def ball_of(
    task: Task,
    norm: Norm,
    radius: float,
    low: float | None,
    high: float | None,
    wrap: Callable[..., Task],
) -> Ball:
    """Make the ball around inputs of a task.

    Args:
        task: Task whose inputs are perturbed.
        norm: Norm of the ball.
        radius: Radius of the ball.
        low: Least value of an input; the least training input if None.
        high: Largest value of an input; the largest training input if None.
        wrap: Public function that asks, for the error.

    Raises:
        ValueError: If it is no task, or its batches have no inputs of real numbers, or there is no
            such ball.
    """
    check_is_task(task, wrap)
    check_numbers(radius=radius)
    check_inputs(task, wrap)
    if low is None or high is None:
        if not is_rows(task.data):
            raise ValueError(
                f"`low` and `high` must be given for {task.name}, whose data are not those of "
                "l2o.supervised; got none. Try low=0.0, high=1.0."
            )
        inputs = np.asarray(task.data["train"].inputs, np.float64)
        low = float(inputs.min()) if low is None else low
        high = float(inputs.max()) if high is None else high
    return Ball(norm, radius, low, high)


def check_inputs(task: Task, wrap: Callable[..., Task]) -> None:
    """Raise a `ValueError` unless batches of a task have one array of real numbers as inputs."""
    draw = lambda key: task.batch(key, task.sample(key), task.data, "train")
    batch = jax.eval_shape(draw, jax.random.key(0))
    inputs = getattr(batch, "inputs", None) if hasattr(batch, "_replace") else None
    is_array = isinstance(inputs, jax.ShapeDtypeStruct) and inputs.ndim > 0
    if not (inputs and is_array and jnp.issubdtype(inputs.dtype, jnp.floating)):
        raise ValueError(
            f"`task` must have batches whose `inputs` are one array of real numbers, as those of "
            f"l2o.supervised; got {task.name}, whose batches are otherwise. Apply "
            f"{wrap.__name__} before augmentations of gradients, and not to a task without inputs."
        )


def check_steps(**values: int) -> None:
    """Raise a `ValueError` that says what to type unless arguments are whole numbers above 0."""
    for name, value in values.items():
        if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"`{name}` must be a whole number above 0; got {value!r}. Try {name}=10."
            )


def input_gradient(
    task: Task, params: optax.Params, batch: Batch, instance: Instance
) -> Callable[[jax.Array], jax.Array]:
    """Function of inputs that returns the gradient of a batch's loss with respect to them."""
    return jax.grad(lambda points: task.loss(params, batch._replace(inputs=points), instance))


def row_losses(task: Task, params: optax.Params, batch: Batch, instance: Instance) -> jax.Array:
    """Loss of each row of a batch alone, of shape (rows,).

    Where rows of a batch depend on each other, or a batch is not one of `l2o.supervised`, each row
    has the loss of the batch.
    """
    return by_row(task, lambda one: task.loss(params, one, instance), batch)


def row_scores(task: Task, params: optax.Params, batch: Batch, instance: Instance) -> jax.Array:
    """How bad each row is, of shape (rows,): its loss, and more where it is classified wrongly."""

    def score(one: Batch) -> jax.Array:
        loss = task.loss(params, one, instance)
        metrics = task.metrics(params, one, instance)
        return loss + WRONG * (1.0 - metrics["accuracy"]) if "accuracy" in metrics else loss

    return by_row(task, score, batch)


def by_row(task: Task, measure: Callable[[Batch], jax.Array], batch: Batch) -> jax.Array:
    """Measure each row of a batch alone; the whole batch for each row, where rows mix."""
    if not isinstance(batch, Rows) or task.shrink is None:
        return jnp.broadcast_to(measure(batch), (len(batch.inputs),))

    def alone(inputs: jax.Array, targets: jax.Array) -> jax.Array:
        one = jax.tree.map(lambda x: x[None], (inputs, targets))
        size = jnp.ones_like(batch.size)
        return measure(batch._replace(inputs=one[0], targets=one[1], size=size))

    return jax.vmap(alone)(batch.inputs, batch.targets)
