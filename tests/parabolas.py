"""Parabolas, whose training is known in closed form, for the tests of evaluation."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from l2o.rng import stream
from l2o.task import Task

KEY = stream(0, "evaluation")


SEEDS = dict(num_seeds=3)


def parabola(cap: float = 1e3) -> Task:
    """0.5 h (x - 1)², h = 2 and a start at x = 3 + seed's noise; nothing random in a batch."""
    return Task(
        name="parabola",
        sample=lambda key: {"curvature": jnp.float32(2.0)},
        init=lambda key, instance: {"x": 3.0 + jax.random.uniform(key)},
        batch=lambda key, instance, data, split: jnp.float32(split == "test"),
        loss=lambda params, shift, instance: (
            0.5 * instance["curvature"] * jnp.square(params["x"] - 1.0) + shift
        ),
        loss_cap=cap,
        metrics=lambda params, shift, instance: {"x": params["x"]},
    )


def noisy(std: float = 0.3) -> Task:
    """The parabola with curvatures that differ, and a minimum that a batch shifts."""
    return dataclasses.replace(
        parabola(),
        name="noisy",
        sample=lambda key: {"curvature": 1.0 + jax.random.uniform(key)},
        batch=lambda key, instance, data, split: std * jax.random.normal(key),
        loss=lambda params, shift, instance: (
            0.5 * instance["curvature"] * jnp.square(params["x"] - 1.0 - shift)
        ),
    )


def nan_after(steps: int) -> optax.GradientTransformation:
    """Gradient descent whose updates are NaN once `steps` have been taken."""
    return optax.chain(
        optax.sgd(0.1),
        optax.scale_by_schedule(lambda count: jnp.where(count < steps, 1.0, jnp.nan)),
    )
