"""Learned optimizers that are trained as a task."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o.tasks.meta_training import meta_training_task
from l2o.tasks.quadratic import rotated_quadratic


def parabola(**changes) -> l2o.Task:
    """x²/2 from a drawn start, whose gradient is x; a loss of 1 is typical."""
    task = l2o.Task(
        name="parabola",
        sample=lambda key: (),
        init=lambda key, instance: {"x": 1.0 + jax.random.uniform(key)},
        batch=lambda key, instance, data, split: 0.1 * jax.random.normal(key),
        loss=lambda params, noise, instance: 0.5 * params["x"] ** 2 + noise * params["x"],
        loss_cap=50.0,
        loss_scale=2.0,
    )
    return dataclasses.replace(task, **changes)


def losses_by_hand(start: np.ndarray, noise: np.ndarray, rate: float) -> np.ndarray:
    """Losses of gradient descent on all runs, shape (runs, steps), in units of 2."""
    x, found = start.astype(np.float64), []
    for n in noise.T.astype(np.float64):
        found.append((0.5 * x**2 + n * x) / 2.0)
        x = x - rate * (x + n)
    return np.stack(found, axis=1)


def test_the_loss_is_that_of_descent_and_its_gradient_that_of_finite_differences(key):
    task = meta_training_task("m", l2o.learnable_sgd(0.1), parabola(), horizon=5, num_runs=3)

    def measure(key):
        runs = task.batch(key, (), (), "train")
        theta = task.init(key, ())
        loss, gradient = jax.value_and_grad(task.loss)(theta, runs, ())
        return runs, loss, gradient, task.metrics(theta, runs, ())

    runs, loss, gradient, metrics = jax.device_get(jax.jit(measure)(key))
    at = lambda rate: losses_by_hand(runs.params["x"], runs.batches, rate)
    assert runs.batches.shape == (3, 5) and len(np.unique(runs.batches)) == 15
    np.testing.assert_allclose(loss, at(0.1).mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["final_loss"], at(0.1)[:, -1].mean(), rtol=1e-5)
    slope = (at(0.1 + 1e-4).mean() - at(0.1 - 1e-4).mean()) / 2e-4
    of_logarithm = 0.1 * slope
    (found,) = jax.tree.leaves(gradient)
    np.testing.assert_allclose(found, of_logarithm, rtol=1e-3)


def test_a_run_that_diverges_costs_the_cap(key):
    """A rate of 100 leads away by a factor of 99 a step: all but the first loss are capped."""
    task = meta_training_task("m", l2o.learnable_sgd(100.0), parabola(), horizon=60, num_runs=2)

    def measure(key):
        runs = task.batch(key, (), (), "train")
        theta = task.init(key, ())
        return runs, task.loss(theta, runs, ())

    runs, loss = jax.device_get(jax.jit(measure)(key))
    first = losses_by_hand(runs.params["x"], runs.batches[:, :1], 0.0).mean()
    assert task.loss_cap == 25.0
    np.testing.assert_allclose(loss, (first + 59 * 25.0) / 60, rtol=1e-5)


def test_data_are_those_of_the_inner_task(key):
    inner = parabola(data=jnp.arange(7.0), batch=lambda key, instance, data, split: data[3])
    task = meta_training_task("m", l2o.learnable_sgd(), inner, horizon=2, num_runs=1)
    for split in ("train", "valid", "test"):
        np.testing.assert_array_equal(task.batch(key, (), 2.0 * task.data, split).batches, [[6, 6]])


@pytest.mark.parametrize(
    "changes", [{"loss_cap": np.inf}, {"modifies_gradients": True}, {"is_differentiable": False}]
)
def test_an_inner_loss_needs_a_cap_and_a_gradient_of_its_own(changes):
    with pytest.raises(
        ValueError, match=r"`inner` must have a loss with a finite cap .*; got parab"
    ):
        meta_training_task("m", l2o.learnable_sgd(), parabola(**changes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [(l2o.learnable_sgdm(), 0.1), (l2o.mlp_lopt(4, step_mult=0.1), 0.03)],
)
def test_adam_meta_trains(optimizer, rate):
    """200 steps of Adam on four seeds; the last twenty losses beside the first."""
    task = meta_training_task("m", optimizer, rotated_quadratic(10))

    def train(key):
        k_init, k_train = jax.random.split(key)
        tx = optax.adam(rate)

        def step(carry, key):
            theta, state = carry
            loss, grads = jax.value_and_grad(task.loss)(theta, task.batch(key, (), (), "train"), ())
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(theta, updates), state), loss

        theta = task.init(k_init, ())
        carry = theta, tx.init(theta)
        return jax.lax.scan(step, carry, jax.random.split(k_train, 200))[1]

    losses = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 4))
    first, last = losses[:, 0].mean(), losses[:, -20:].mean()
    assert last < 0.25 * first
