"""Small tasks whose inputs can be perturbed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import l2o


def linear_task(rows: int = 40, numbers: int = 6, **options) -> l2o.Task:
    """Two classes told apart by a line; weights are random, so about half of the rows are right."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(rows, numbers)).astype(np.float32)
    split = inputs, (inputs.sum(axis=1) > 0).astype(np.int32)
    return l2o.supervised(
        "linear",
        dict.fromkeys(("train", "valid", "test"), split),
        init=lambda key: {"w": jax.random.normal(key, (numbers, 2)), "b": jnp.zeros(2)},
        apply=lambda params, inputs: inputs @ params["w"] + params["b"],
        **options,
    )


class Measured(NamedTuple):
    inputs: jax.Array
    noise: jax.Array


def own_task() -> l2o.Task:
    """A user's task whose batches have inputs, and are none of `l2o.supervised`."""

    def loss(params, batch, instance):
        return jnp.mean(jnp.square(batch.inputs @ params["w"] - instance - batch.noise))

    return l2o.Task(
        name="own",
        sample=lambda key: jax.random.normal(key, ()),
        init=lambda key, instance: {"w": 0.1 * jax.random.normal(key, (3,))},
        batch=lambda key, instance, data, split: Measured(
            1.0 + jax.random.normal(key, (8, 3)), 0.1 * jax.random.normal(key, (8,))
        ),
        loss=loss,
        loss_cap=50.0,
    )
