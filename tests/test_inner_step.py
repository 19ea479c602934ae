"""Batches of an inner step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import (
    HORIZON,
    WINDOW,
    small_policy,
    tiny_task,
)

from l2o.evaluation.evaluate import evaluate
from l2o.inner_step import batch_per_member, training_batch
from l2o.objective import Objective
from l2o.problem import inner_problem, unroll_run


@pytest.fixture(scope="module")
def task():
    return tiny_task()


def test_a_smaller_batch_is_its_first_rows_at_least_one(task):
    key, instance = jax.random.key(0), task.sample(jax.random.key(1))
    params = task.init(jax.random.key(2), instance)
    batch = task.batch(key, instance, task.data, "train")
    quarter = training_batch(task, key, instance, task.data, jnp.float32(0.25))
    assert quarter.inputs.shape == batch.inputs.shape
    first = batch._replace(inputs=batch.inputs[:4], targets=batch.targets[:4])
    log_probs = lambda rows: jax.vmap(
        lambda x, y: task.loss(
            params,
            batch._replace(
                inputs=jnp.zeros_like(batch.inputs).at[0].set(x),
                targets=jnp.zeros_like(batch.targets).at[0].set(y),
                size=jnp.int32(1),
            ),
            instance,
        )
    )(rows.inputs, rows.targets)
    expected = np.mean(log_probs(first))
    np.testing.assert_allclose(task.loss(params, quarter, instance), expected, rtol=1e-5)
    assert training_batch(task, key, instance, task.data, jnp.float32(0.001)).size == 1
    assert training_batch(task, key, instance, task.data, None).size == 16
    bare = dataclasses.replace(task, shrink=None)
    with pytest.raises(ValueError, match="`task` must have `shrink` for an optimizer that chooses"):
        training_batch(bare, key, instance, task.data, jnp.float32(0.5))


def test_batches_shrink_wherever_an_optimizer_trains(task):
    """In evaluation and under evolution strategies the loss of this task is the rows that count."""
    lopt = small_policy(hyperparameters=("batch_fraction",))
    theta = lopt.init(jax.random.key(0))
    shrinking = {**theta, "b2": jnp.array([0.0, -3.0])}
    rows = dataclasses.replace(
        task, loss=lambda p, b, i: b.size + 0.0 * jnp.sum(p["w0"]), loss_cap=100.0
    )
    tx = lambda *, horizon: lopt.transform(shrinking, horizon=horizon)
    curves = evaluate(jax.random.key(1), rows, {"a": tx}, horizon=HORIZON, num_seeds=1)
    # It acts at steps 0, 5, ...; the next batch follows. Factors of exp(-0.9).
    sizes = [16, *[round(16 * float(np.exp(-0.9 * k))) for k in (1, 2, 3) for _ in range(5)]]
    np.testing.assert_allclose(curves["a"].train_loss[0, :16], sizes)
    problem = inner_problem(rows, lopt, horizon=HORIZON, window=WINDOW, objective=Objective("mean"))
    window = unroll_run(problem, jax.random.key(2), shrinking, problem.data)
    np.testing.assert_allclose(window.loss[:16], sizes, rtol=1e-6)


def test_members_that_share_a_batch_have_an_axis_each():
    """And the same numbers, whatever their dtype; keys and empty parameters, too."""
    batch = {"x": jnp.arange(6.0).reshape(2, 3), "label": jnp.array([3, 1]), "k": jax.random.key(0)}
    params = {"none": jnp.zeros((4, 0)), "w": jnp.array([[1.0], [-1.0], [jnp.nan], [0.0]])}
    own = jax.vmap(batch_per_member, (None, 0))(batch, params)
    for name, x in batch.items():
        assert own[name].shape == (4, *x.shape)
        assert all(bool(jnp.all(own[name][i] == x)) for i in range(4))
    with pytest.raises(ValueError, match="out_axes"):  # it is not shared any more
        jax.vmap(batch_per_member, (None, 0), out_axes=None)(batch, params)
    assert batch_per_member(batch, {}) is batch
