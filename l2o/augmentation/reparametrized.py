"""Reparametrisation: the same functions, in other units.

Of a task with initial parameters φ₀ and loss f it makes one with initial parameters φ₀/α and loss
φ ↦ f(α φ), α > 0 and fixed within an instance. Gradients with respect to φ are α times as large and
parameters 1/α as large, so in the units of f the learning rate of SGD is multiplied by α², that of
updates of a fixed size (sign descent, Adam) by α, and updates in proportion to the parameters are
what they were. Metz et al. 2022 (VeLO, arXiv:2211.09760) and Moudgil et al. 2025 (Celo,
arXiv:2501.12670) meta-train on it, Celo with one α per instance, from 0.001 to 1,000.
"""

from dataclasses import replace
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.augmentation.augmented import Augmented, check_is_task, check_range, params_of, with_drawn
from l2o.supervision.supervised import log_uniform
from l2o.task import Batch, Key, Task

Level = Literal["global", "tensor", "parameter"]


def reparametrized(
    task: Task, level: Level = "global", *, low: float = 1e-3, high: float = 1e3
) -> Task:
    """Store parameters in other units: divided by α at the start, multiplied by α in the loss.

    ln α is uniform from ln `low` to ln `high`, drawn for each instance. Parameters keep their
    dtypes: of a `low_precision` task, what is multiplied by α is rounded to bfloat16 again. Apply
    `low_precision` last to have parameters rounded once.

    >>> import jax
    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> task = l2o.reparametrized(rotated_quadratic(2), "tensor", low=0.1, high=10.0)
    >>> task.name, task.family
    ('quadratic_2_reparametrized_tensor', 'quadratic')
    >>> task.sample(jax.random.key(0)).drawn.shape
    (1,)

    Args:
        task: Task to augment.
        level: What shares an α: "global" is all parameters, "tensor" is those of one array, and
            "parameter" is none. Of the last the instance keeps a seed, from which every α is drawn
            again wherever it is needed, and no array of the parameters' size.
        low: Smallest α, above 0.
        high: Largest α.

    Returns:
        The task; `instance.drawn` is α, shape () or (tensors,), or the seed, a scalar.

    Raises:
        ValueError: If it is no task, or the level is unknown, or `low` and `high` are not a range.
    """
    check_is_task(task, reparametrized)
    if level not in get_args(Level):
        raise ValueError(
            f'`level` must be one of {", ".join(get_args(Level))}; got {level}. Try level="tensor".'
        )
    check_range(low, high, (1e-3, 1e3))
    kind = "reparametrized" if level == "global" else f"reparametrized_{level}"
    shapes, structure = jax.tree.flatten(params_of(task))
    ends = np.cumsum([shape.size for shape in shapes])

    def draw(key: Key) -> Any:
        if level == "parameter":
            return jax.random.bits(key)  # a typed key could not be spread over devices
        return log_uniform(key, low, high, () if level == "global" else (len(shapes),))

    def alphas(drawn: Any) -> optax.Params:
        if level == "global":
            return structure.unflatten([drawn] * len(shapes))
        if level == "tensor":
            return structure.unflatten([drawn[i] for i in range(len(shapes))])
        flat = jnp.split(log_uniform(jax.random.key(drawn), low, high, (int(ends[-1]),)), ends[:-1])
        return structure.unflatten(
            [x.reshape(shape.shape) for x, shape in zip(flat, shapes, strict=True)]
        )

    def used(params: optax.Params, instance: Augmented) -> optax.Params:
        return jax.tree.map(lambda p, a: (p * a).astype(p.dtype), params, alphas(instance.drawn))

    def init(key: Key, instance: Augmented) -> optax.Params:
        params = task.init(key, instance.instance)
        return jax.tree.map(lambda p, a: (p / a).astype(p.dtype), params, alphas(instance.drawn))

    def loss(params: optax.Params, batch: Batch, instance: Augmented) -> jax.Array:
        return task.loss(used(params, instance), batch, instance.instance)

    def metrics(params: optax.Params, batch: Batch, instance: Augmented):
        return task.metrics(used(params, instance), batch, instance.instance)

    augmented = with_drawn(task, kind, draw)
    return replace(augmented, init=init, loss=loss, metrics=metrics)
