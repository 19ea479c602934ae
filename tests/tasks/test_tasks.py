"""One table: every kind of task is deterministic, and can be trained."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from draws import SPLITS, draw, tasks

from l2o.task import TaskFamily, validate_task
from l2o.tasks.quadratic import rosenbrock, rotated_quadratic

NAMES = ["quadratic", "rosenbrock", "images", "images_varied"]


RATES = {"quadratic": 0.05, "rosenbrock": 0.02, "images": 0.01, "images_varied": 0.01}


def differ(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_in_key_with_finite_nonzero_gradients(name, key):
    task = tasks()[name]
    validate_task(task)
    function = jax.jit(lambda k: draw(task, k))
    first, again, other = function(key), function(key), function(jax.random.key(1))
    assert not differ(first, again)
    assert differ(first.params, other.params) and differ(first.batch, other.batch)
    assert differ(first.instance, other.instance) == (name != "images")
    loss, grads = jax.value_and_grad(task.loss)(first.params, first.batch, first.instance)
    assert loss.shape == () and np.isfinite(loss) and loss < task.loss_cap
    for leaf in jax.tree.leaves(grads):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0)


@pytest.mark.parametrize("name", NAMES)
def test_loss_falls_under_adam_for_several_instances_at_once(name, key):
    task = tasks()[name]
    tx = optax.adam(RATES[name])

    def train(k):
        first = draw(task, k)
        # Parameters are stored divided by the scale: so is Adam's step.
        scale = first.instance.get("scale", jnp.float32(1.0))

        def step(carry, k_batch):
            params, state = carry
            batch = task.batch(k_batch, first.instance, task.data, "train")
            loss, grads = jax.value_and_grad(task.loss)(params, batch, first.instance)
            updates, state = tx.update(grads, state, params)
            updates = jax.tree.map(lambda u: u / scale, updates)
            return (optax.apply_updates(params, updates), state), loss

        carry = (first.params, tx.init(first.params))
        (params, _), losses = jax.lax.scan(step, carry, jax.random.split(k, 150))
        metrics = {}
        for split in SPLITS:
            batch = task.batch(k, first.instance, task.data, split)
            metrics[split] = dict(task.metrics(params, batch, first.instance))
        return losses, metrics

    losses, metrics = jax.jit(jax.vmap(train))(jax.random.split(key, 4))
    assert losses.shape == (4, 150)
    start, end = np.mean(losses[:, :5]), np.mean(losses[:, -20:])
    assert end < 0.6 * start
    if name == "images":
        assert np.all(metrics["test"]["accuracy"] > 0.6)
        assert np.all(metrics["test"]["accuracy"] <= 1.0)


def test_family_refuses_a_name_in_both_lists():
    one, two = rotated_quadratic(dim=2), rotated_quadratic(dim=3)
    TaskFamily(name="fine", train=(one,), evaluation=(two,))
    for train, evaluation in (((one,), (two, one)), ((one, one), (two,))):
        with pytest.raises(
            ValueError, match=r"of family mixed must be disjoint.*quadratic_2 twice"
        ):
            TaskFamily(name="mixed", train=train, evaluation=evaluation)


def test_a_loss_scale_must_be_positive():
    with pytest.raises(ValueError, match="`loss_scale` of task rosenbrock must be positive"):
        validate_task(replace(rosenbrock(), loss_scale=0.0))
