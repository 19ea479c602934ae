"""Every design, and updates to run it on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.optimizers.adafac_mlp import adafac_mlp
from l2o.optimizers.celo import celo
from l2o.optimizers.learnable import learnable_adam, learnable_sgd, learnable_sgdm
from l2o.optimizers.mlp_lopt import mlp_lopt
from l2o.optimizers.muon_mlp import muon_mlp
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.policies.optimizer_selector import optimizer_selector
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler
from l2o.registry import POLICIES

TABLE = {
    "learnable_sgd": learnable_sgd(learning_rate=0.2),
    "learnable_sgdm": learnable_sgdm(learning_rate=0.1, momentum=0.8),
    "learnable_adam": learnable_adam(learning_rate=0.1),
    "mlp_lopt": mlp_lopt(hidden_size=10, step_mult=0.1),
    "adafac_mlp": adafac_mlp(hidden_size=2, step_mult=0.1),
    "celo": celo(hidden_size=3, width=2),
    "muon_mlp": muon_mlp(rate=0.1, direction_size=2, statistics_size=4),
    "nominal_mlp": nominal_mlp(rate=0.1, direction_size=2, schedule_size=4),
    "scheduler": scheduler(learning_rate=0.2, action_interval=2, core="gru", hidden_size=3),
    "per_tensor_controller": per_tensor_controller(
        "adam", ["b1", "weight_decay"], action_interval=1, hidden_size=3
    ),
    "optimizer_selector": optimizer_selector(
        ["sgdm", "adam"], [0.3, 0.2], action_interval=1, hidden_size=3
    ),
}
"""Narrow variants, but for mlp_lopt, so that layers of both kinds are covered."""


NAMES = list(TABLE)


NEEDS_PARAMS = ["mlp_lopt", "adafac_mlp", "celo", "muon_mlp", "nominal_mlp", *POLICIES]


NEEDS_VALUE = ["celo", "muon_mlp", "nominal_mlp"]


SEES_ALL = ["scheduler", "optimizer_selector"]
"""One agent for all tensors: what it does to one depends on the others."""


HORIZON = 10


SMALL = {"a": (2, 3), "b": (2,)}


class Case(NamedTuple):
    """Arguments of one update."""

    grads: dict[str, jax.Array]
    params: dict[str, jax.Array]
    value: jax.Array


def case(shapes: dict, seed: int = 0, dtype=jnp.float32) -> Case:
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), dtype)
    return Case(
        grads={name: draw(shape) for name, shape in shapes.items()},
        params={name: draw(shape) for name, shape in shapes.items()},
        value=jnp.float32(1.5 + seed),
    )


@functools.cache
def perturbed_theta(name: str, seed: int = 2):
    """Perturbed, as some designs start at zero."""
    k_init, k_noise = jax.random.split(jax.random.key(seed))
    theta = TABLE[name].init(k_init)
    noise = optax.tree.random_like(k_noise, theta)
    return jax.tree.map(lambda t, z: t + 0.3 * z, theta, noise)


@functools.cache
def compiled(name: str) -> optax.GradientTransformationExtraArgs:
    """The transformation with a jitted update: programs are shared between tests."""
    tx = TABLE[name].transform(perturbed_theta(name), horizon=HORIZON)
    return optax.GradientTransformationExtraArgs(tx.init, jax.jit(tx.update))


def run(tx, cases: list[Case], **extra):
    """Updates of consecutive steps, and the last state."""
    state, found = tx.init(cases[0].params), []
    for c in cases:
        updates, state = tx.update(c.grads, state, c.params, value=c.value, **extra)
        found.append(updates)
    return found, state


def assert_close(found, expected, rtol=1e-5, atol=1e-6):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol)


def shapes_and_dtypes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
