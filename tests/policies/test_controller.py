"""Hyperparameters under control, of a network and of each tensor."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import tiny_task

from l2o.policies.observation import NUM_RUN_FEATURES
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler


@pytest.fixture(scope="module")
def task():
    return tiny_task()


def test_an_agent_sees_how_far_steps_go():
    """Five decades of updates over parameters, each told from the next."""
    controlled = scheduler().policy.controlled
    params = {"w": jnp.ones(4)}
    seen = []
    for rate in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1):
        state = controlled.init(params, 100)
        turned = state._replace(codes=jnp.full((1, 1), np.log(rate)))
        _, state = controlled.update(params, turned, params, jnp.float32(1.0))
        seen.append(float(controlled.observe(state)[0, NUM_RUN_FEATURES + 2]))
    np.testing.assert_allclose(np.diff(seen), 0.2 * np.log(10.0), rtol=1e-3)


def test_hyperparameters_stay_in_their_range_and_keep_still_at_zero(task):
    del task
    controlled = per_tensor_controller(
        "adam", ["b1", "weight_decay"], lowest=0.01, highest=0.2
    ).policy.controlled
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = controlled.init(params, 100)
    still = controlled.apply_action(state, jnp.zeros((2, 3)))
    np.testing.assert_array_equal(still.codes, state.codes)
    np.testing.assert_allclose(np.exp(state.codes[:, 0]), 0.1, rtol=1e-5)
    for action, rate in ((1e3, 0.2), (-1e3, 0.01)):
        turned = controlled.apply_action(state, jnp.full((2, 3), action))
        np.testing.assert_allclose(np.exp(turned.codes[:, 0]), rate, rtol=1e-5)
        assert np.all(np.isfinite(controlled.observe(turned)))


def test_each_tensor_obeys_its_own_agent():
    controlled = per_tensor_controller("sgdm", [], learning_rate=0.1).policy.controlled
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = controlled.apply_action(controlled.init(params, 100), jnp.array([[2.0], [0.0]]))
    updates, _ = controlled.update(params, state, params, jnp.float32(1.0))
    np.testing.assert_allclose(updates["a"], -0.1 * np.exp(0.3 * 2.0), rtol=1e-5)
    np.testing.assert_allclose(updates["b"], -0.1, rtol=1e-5)
