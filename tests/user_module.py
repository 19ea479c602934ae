"""What a user would write: tasks and designs of their own, some of them wrong."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

import l2o
from l2o.policies.scheduler import scheduler


class Momentum(NamedTuple):
    momentum: optax.Params


def bowl() -> l2o.Task:
    return l2o.Task(
        name="bowl",
        sample=lambda key: jax.random.normal(key, (3,)),
        init=lambda key, minimum: {"x": jax.random.normal(key, (3,))},
        batch=lambda key, minimum, data, split: 0.1 * jax.random.normal(key, (3,)),
        loss=lambda params, shift, minimum: jnp.sum(jnp.square(params["x"] - minimum - shift)),
        loss_cap=100.0,
        loss_scale=3.0,
    )


def bowl_with_splits() -> l2o.Task:
    """Its valid batches shift the minimum by more."""
    noise = {"train": 0.1, "valid": 0.2, "test": 0.1}
    return dataclasses.replace(
        bowl(),
        batch=lambda key, minimum, data, split: noise[split] * jax.random.normal(key, (3,)),
    )


def two_bowls() -> l2o.Task:
    """Two tensors, one of which is stored in other units."""
    units = {"x": 1.0, "y": 0.1}

    def loss(params, shift, minimum):
        away = lambda name: units[name] * params[name] - minimum - shift
        return jnp.sum(jnp.square(away("x"))) + jnp.sum(jnp.square(away("y")))

    return dataclasses.replace(
        bowl(),
        name="two_bowls",
        init=lambda key, minimum: {name: jnp.zeros(3) for name in units},
        loss=loss,
    )


def uncapped() -> l2o.Task:
    return dataclasses.replace(bowl(), name="uncapped", loss_cap=float("inf"))


def shrinks_in_training() -> l2o.TaskFamily:
    """Only the task to meta-train on can have smaller batches."""
    train = dataclasses.replace(bowl(), name="shrinks", shrink=lambda batch, fraction: batch)
    return l2o.TaskFamily(name="bowls", train=(train,), evaluation=(bowl(),))


def saves_examples() -> l2o.LearnedOptimizer:
    return scheduler(hyperparameters=["batch_fraction"])


def empty_range() -> l2o.LearnedOptimizer:
    return scheduler(lowest=1.0, highest=0.1)


def integer_params() -> l2o.Task:
    return l2o.Task(
        name="integer_params",
        sample=lambda key: None,
        init=lambda key, instance: {"n": jnp.arange(3)},
        batch=lambda key, instance, data, split: None,
        loss=lambda params, batch, instance: 1.0 * jnp.sum(params["n"]),
        loss_cap=1.0,
    )


def vector_loss() -> l2o.Task:
    return l2o.Task(
        name="vector_loss",
        sample=lambda key: None,
        init=lambda key, instance: {"x": jnp.zeros(3)},
        batch=lambda key, instance, data, split: None,
        loss=lambda params, batch, instance: params["x"],
        loss_cap=1.0,
    )


def always_nan() -> l2o.Task:
    return l2o.Task(
        name="always_nan",
        sample=lambda key: None,
        init=lambda key, instance: {"x": jnp.zeros(3)},
        batch=lambda key, instance, data, split: None,
        loss=lambda params, batch, instance: jnp.nan * jnp.sum(params["x"]),
        loss_cap=1.0,
    )


not_a_task = 3


def momentum_rate() -> l2o.LearnedOptimizer:
    """Momentum with one learned rate."""

    def transform(theta, *, horizon=None):
        del horizon

        def init(params):
            return Momentum(optax.tree.zeros_like(params))

        def update(updates, state, params=None, **extra_args):
            del params, extra_args
            momentum = jax.tree.map(lambda m, g: 0.9 * m + g, state.momentum, updates)
            step = jax.tree.map(lambda m: -jnp.exp(theta["log_rate"]) * m, momentum)
            return step, Momentum(momentum)

        return optax.GradientTransformationExtraArgs(init, update)

    return l2o.LearnedOptimizer(
        name="momentum_rate",
        init=lambda key: {"log_rate": jnp.log(0.01)},
        transform=transform,
    )


configured = l2o.learnable_sgd(learning_rate=0.2)

suite = (l2o.SuiteTask("bowl", bowl, kind="function", horizon=5, solved=0.01),)


def rate_of(rates: int = 3) -> l2o.LearnedOptimizer:
    """Plain descent at the product of several learned rates."""
    return l2o.LearnedOptimizer(
        name="rate_of",
        init=lambda key: {"log_rates": jnp.log(0.1) / rates * jnp.ones(rates)},
        transform=lambda theta, *, horizon=None: optax.with_extra_args_support(
            optax.sgd(jnp.exp(jnp.sum(theta["log_rates"])))
        ),
        config={"rates": rates},
    )


def adam_at(setting, horizon):
    """Adam at a rate, which uses all of every batch."""
    del horizon
    return optax.adam(setting)


RATES = (adam_at, [0.01, 0.1])
NO_PAIR = 3
NO_SETTINGS = (adam_at, [])
NO_HORIZON = (lambda rate: optax.sgd(rate), [0.1])
