"""Parameters that no gradient has ever reached stay where they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o


def untrained(lopt):
    return lopt.transform(lopt.init(jax.random.key(0)), horizon=50)


@pytest.mark.parametrize(
    "tx",
    [
        l2o.optimizer("digits", horizon=50),
        l2o.guarded(l2o.optimizer("digits", horizon=50)),
        untrained(l2o.muon_mlp(rate=0.03)),
    ],
    ids=["digits", "guarded", "muon_mlp"],
)
def test_what_is_cut_off_and_rows_that_are_not_looked_up_stay(tx):
    k_table, k_trunk, k_head = jax.random.split(jax.random.key(0), 3)
    params = {
        "table": jax.random.normal(k_table, (6, 4)),
        "trunk": jax.random.normal(k_trunk, (4, 4)),
        "bias": jnp.zeros(4),
        "head": jax.random.normal(k_head, (4, 3)),
    }

    def loss(params):
        rows = params["table"][jnp.array([0, 2, 5])]
        trunk, bias = jax.lax.stop_gradient((params["trunk"], params["bias"]))
        logits = jnp.tanh(rows @ trunk + bias) @ params["head"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(3)))

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params, value=value)
        return optax.apply_updates(params, updates), state, value

    after, state, values = params, tx.init(params), []
    for _ in range(50):
        after, state, value = step(after, state)
        values.append(value)
    assert values[-1] < 0.2 * values[0]
    for name in ("trunk", "bias"):
        np.testing.assert_array_equal(after[name], params[name])
    is_moved = np.any(np.asarray(after["table"] != params["table"]), axis=1)
    assert is_moved.tolist() == [True, False, True, False, False, True]


def test_a_gradient_that_was_not_always_zero_counts():
    """A momentum goes on where a gradient is zero for once, as Adam's does."""
    lopt = l2o.nominal_mlp()
    tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=10)
    params = {"w": jnp.ones((2, 3))}
    state = tx.init(params)
    _, state = tx.update({"w": jnp.ones((2, 3))}, state, params, value=1.0)
    updates, _ = tx.update({"w": jnp.zeros((2, 3))}, state, params, value=1.0)
    assert np.all(np.asarray(updates["w"]) < 0)
