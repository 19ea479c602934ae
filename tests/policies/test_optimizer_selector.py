"""Optimizers among which an agent selects."""

import jax.numpy as jnp
import numpy as np

from l2o.policies.optimizer_selector import optimizer_selector


def test_the_chosen_optimizer_trains_and_the_others_follow():
    controlled = optimizer_selector(["sgdm", "adam"], [0.5, 0.01]).policy.controlled
    params = {"a": jnp.ones(2)}
    first = controlled.apply_action(controlled.init(params, 100), jnp.array([[1.0]]))
    updates, state = controlled.update(params, first, params, jnp.float32(1.0))
    np.testing.assert_allclose(updates["a"], -0.01, rtol=1e-4)
    updates, _ = controlled.update(
        params, controlled.apply_action(state, jnp.zeros((1, 1))), params, jnp.float32(1)
    )
    np.testing.assert_allclose(updates["a"], -0.5 * 1.9, rtol=1e-5)  # its momentum is warm
