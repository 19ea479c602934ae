"""Small tasks and results for tests of suites."""

import jax
import jax.numpy as jnp
import numpy as np

from l2o.suite.result import Result, Runs
from l2o.suite.suite_task import SuiteTask
from l2o.task import Task


def bowl(name="bowl", dim=3, cap=50.0) -> Task:
    """A quadratic whose test loss is one higher; the validation loss is twice the training's."""
    factors = {"train": 1.0, "valid": 2.0, "test": 1.0}

    def loss(params, batch, instance):
        factor, shift = batch
        return factor * (jnp.sum(jnp.square(params["x"] - instance)) + 0.01) + shift

    return Task(
        name=name,
        family="bowls",
        sample=lambda key: jax.random.normal(key, (dim,)),
        init=lambda key, instance: {"x": instance + 1.0},
        batch=lambda key, instance, data, split: (
            jnp.float32(factors[split]),
            jnp.float32(split == "test"),
        ),
        loss=loss,
        loss_cap=cap,
    )


def entry(name="bowl", **options) -> SuiteTask:
    settings = {"kind": "function", "horizon": 6, "solved": 0.02, "is_quick": True, **options}
    return SuiteTask(name, lambda: bowl(name), **settings)


def result(
    task="bowl",
    entrant="a",
    *,
    train,
    valid=None,
    fastest=None,
    cost=1.0,
    diverged=False,
    **options,
) -> Result:
    """What an optimizer did whose eight seeds all have the same curves, probed at every step."""

    def runs(train, valid):
        train, valid = (np.tile(np.array(x, float), (8, 1)) for x in (train, valid))
        ends = {"loss": valid[:, -1]}
        return Runs(np.arange(train.shape[1]), train, valid, ends, ends, np.full(8, diverged, bool))

    valid = train if valid is None else valid
    best = runs(train, valid)
    return Result(
        task=task,
        entrant=entrant,
        best=best,
        fastest=best if fastest is None else runs(fastest, fastest),
        relative_cost=cost,
        **{
            "is_seen": False,
            "is_tuned": True,
            "num_settings": 12,
            "at_grid_edge": False,
            "setting": {"learning_rate": 0.1, "horizon_fraction": 1.0},
            "fastest_setting": {"learning_rate": 0.2, "horizon_fraction": 0.6},
            "num_parameters": 3,
            "state_per_parameter": 2.0,
            "seconds_per_step": 1e-6,
            "seconds": 1.0,
        }
        | options,
    )
