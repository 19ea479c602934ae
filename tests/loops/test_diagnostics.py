"""Numbers by hand, and the hyperparameters of policies."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from design_cases import NAMES, TABLE, perturbed_theta

import l2o


def test_numbers_by_hand():
    tx = l2o.diagnosed(optax.sgd(0.5, momentum=0.9))
    params = {"a": jnp.array([3.0, 4.0]), "b": jnp.zeros(2)}
    grads = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([0.0, 2.0])}
    _, state = tx.update(grads, tx.init(params), params)
    found = l2o.diagnostics(state)
    np.testing.assert_allclose(found["step_size"], [0.5, 0.5])
    np.testing.assert_allclose(found["relative_update"], [0.1, 0.0])
    np.testing.assert_allclose(found["cosine"], [1.0, 1.0])
    turned = grads | {"a": jnp.array([0.0, 0.9])}
    _, state = tx.update(turned, state, params)
    np.testing.assert_allclose(l2o.diagnostics(state)["cosine"], [0.5**0.5, 1.0], rtol=1e-6)


def test_leaves_without_a_gradient_count_as_zero():
    tx = l2o.diagnosed(l2o.optimizer("digits", 10))
    params = {"w": jnp.ones(3), "f": jnp.tanh, "frozen": jnp.ones(2), "no": None}
    grads = {"w": jnp.ones(3), "f": None, "frozen": None, "no": None}
    _, state = tx.update(grads, tx.init(params), params, value=1.0)
    found = l2o.diagnostics(state)
    assert found["step_size"].shape == (3,)
    assert np.count_nonzero(found["step_size"]) == np.count_nonzero(found["cosine"]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_updates_stay_what_they_are(name):
    tx = TABLE[name].transform(perturbed_theta(name), horizon=10)
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    update = lambda tx: jax.jit(tx.update)(params, tx.init(params), params, value=1.0)
    (found, state), (expected, plain) = update(l2o.diagnosed(tx)), update(tx)
    jax.tree.map(np.testing.assert_array_equal, (found, state.inner), (expected, plain))
    assert all(np.all(np.isfinite(x)) for x in l2o.diagnostics(state).values())


def test_hyperparameters_of_policies_are_those_in_use():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}

    def read(name):
        tx = optax.chain(TABLE[name].transform(perturbed_theta(name), horizon=10))
        state = tx.init(params)
        _, state = tx.update(params, state, params, value=1.0)
        return l2o.diagnostics(state), state[0].controlled.codes

    found, codes = read("per_tensor_controller")
    np.testing.assert_allclose(found["hyperparameters/learning_rate"], np.exp(codes[:, 0]), 1e-6)
    assert found["hyperparameters/b1"].shape == (2,)
    found, codes = read("scheduler")
    np.testing.assert_allclose(found["hyperparameters/learning_rate"], np.exp(codes[0, 0]), 1e-6)


def test_what_a_guard_did_is_read_in_a_chain():
    x = jnp.ones(2)
    tx = optax.chain(optax.clip(1.0), l2o.guarded(l2o.diagnosed(optax.sgd(0.1))))
    found = l2o.diagnostics(tx.init(x))
    assert int(found["switches"]) == 0 and int(found["last_switch"]) == -1
    assert found["step_size"].shape == (1,)
    assert l2o.diagnostics(optax.sgd(0.1).init(x)) == {}
