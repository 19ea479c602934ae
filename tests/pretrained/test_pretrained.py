"""Release files that ship: they load, and still do what they did when they were made."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o.tasks.digits import digits_mlp

FINAL_LOSS = {"digits": 0.0609, "l2o-1": 0.0207}
"""Median probe loss of 8 seeds after 100 steps on the first evaluation task, when released."""

TRAJECTORY = {
    "digits": [3.720, 3.065, 2.657, 2.503],
    "l2o-1": [0.47527, 0.44452, 0.22458, 0.086309],
}
"""Losses after 5, 10, 15 and 20 steps down a bowl, when released."""


@pytest.mark.parametrize("name", FINAL_LOSS)
def test_a_release_reproduces_its_loss(name):
    lopt, theta = l2o.load(name)
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) > 0
    curves = l2o.evaluate(
        l2o.stream(0, "evaluation"),
        digits_mlp().evaluation[0],
        {name: lambda *, horizon: lopt.transform(theta, horizon=horizon)},
        horizon=100,
        num_seeds=8,
    )
    assert np.median(curves[name].final_loss) == pytest.approx(FINAL_LOSS[name], rel=0.05)


@pytest.mark.parametrize("name", TRAJECTORY)
def test_a_release_goes_the_way_it_went(name):
    tx = l2o.optimizer(name, horizon=20)
    params = {"w": jnp.linspace(-1.0, 1.0, 12).reshape(4, 3) ** 3, "b": jnp.array([0.5, -0.2, 0.1])}
    scales = {"w": jnp.linspace(0.1, 3.0, 12).reshape(4, 3), "b": jnp.array([1.0, 0.3, 2.0])}

    def bowl(params):
        return optax.tree.sum(jax.tree.map(lambda p, s: s * p**2, params, scales))

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(bowl)(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state

    state, losses = tx.init(params), []
    for _ in range(20):
        params, state = step(params, state)
        losses.append(float(bowl(params)))
    assert losses[4::5] == pytest.approx(TRAJECTORY[name], rel=1e-3)
