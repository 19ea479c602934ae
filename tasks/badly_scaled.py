"""Tasks whose tensors need step sizes far apart, because each is stored in a unit of its own."""

import dataclasses

import jax
import jax.numpy as jnp

from l2o import Key, Task, TaskFamily, log_uniform
from l2o.tasks.digits import digits, of_digits
from l2o.tasks.image_mlp import image_mlp

SPAN = 8.0
"""Units lie between 1/8 and 8, so the step sizes that suit them lie up to 4,096 apart."""

HIDDEN = (32, 32, 32)


def badly_scaled(task: Task, *, varied: bool, span: float = SPAN) -> Task:
    """Store each tensor φ of a task as φ/α, with a unit α of its own.

    Gradients grow with α and parameters with 1/α: gradient descent wants a rate in proportion to
    1/α².

    Args:
        task: Task whose tensors are stored so.
        varied: Whether an instance draws every α log-uniformly between 1/`span` and `span`; else
            they alternate between the two, leaf by leaf.
        span: Largest unit, at least 1.

    Raises:
        ValueError: If `span` is below 1.
    """
    if span < 1:
        raise ValueError(f"`span` must be at least 1; got {span}. Try span=8.")

    def sample(key: Key):
        k_task, k_units = jax.random.split(key)
        shapes = jax.eval_shape(lambda k: task.init(k, task.sample(k)), k_task)
        number = len(jax.tree.leaves(shapes))
        if varied:
            keys = jax.random.split(k_units, number)
            units = jax.vmap(lambda k: log_uniform(k, 1.0 / span, span))(keys)
        else:
            units = jnp.where(jnp.arange(number) % 2 == 0, span, 1.0 / span)
        return {"task": task.sample(k_task), "units": units}

    def scaled(params, units: jax.Array):
        leaves, structure = jax.tree.flatten(params)
        return structure.unflatten([p * u for p, u in zip(leaves, units, strict=True)])

    all_rows = task.all_rows
    return dataclasses.replace(
        task,
        sample=sample,
        init=lambda key, instance: scaled(
            task.init(key, instance["task"]), 1.0 / instance["units"]
        ),
        batch=lambda key, instance, data, split: task.batch(key, instance["task"], data, split),
        loss=lambda params, batch, instance: task.loss(
            scaled(params, instance["units"]), batch, instance["task"]
        ),
        metrics=lambda params, batch, instance: task.metrics(
            scaled(params, instance["units"]), batch, instance["task"]
        ),
        all_rows=all_rows
        and (lambda instance, data, split: all_rows(instance["task"], data, split)),
    )


def badly_scaled_mlp() -> TaskFamily:
    """A deep MLP on digits whose tensors are stored in units that lie 64-fold apart.

    >>> [task.name for task in badly_scaled_mlp().evaluation]
    ['badly_scaled_mlp_alternating']
    """
    name = "badly_scaled_mlp"
    mlp = lambda variant: image_mlp(f"{name}_{variant}", digits(), HIDDEN, family=name)
    return of_digits(
        TaskFamily(
            name=name,
            train=(badly_scaled(mlp("varied"), varied=True),),
            evaluation=(badly_scaled(mlp("alternating"), varied=False),),
        )
    )
