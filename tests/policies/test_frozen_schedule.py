"""Optimizers that follow a schedule, beside optax and beside policies whose actions are known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o

RATES, DECAYS = (0.1, 0.05, 0.02), (0.9, 0.5, 0.1)


def write(path, **content):
    path.write_text(json.dumps(content))
    return path


def steps_of(tx, params, num_steps=4):
    state, steps = tx.init(params), []
    for i in range(num_steps):
        grads = jax.tree.map(lambda p, i=i: (i + 1.0) * p, params)
        updates, state = tx.update(grads, state, params, value=1.0)
        steps.append(updates)
    return steps


def test_momentum_sgd_by_hand(tmp_path):
    """The last values are held, and the momentum is that of the step."""
    values = {"learning_rate": RATES, "momentum": DECAYS}
    tx = l2o.load_schedule(write(tmp_path / "s.json", base="sgdm", hyperparameters=values))
    trace, found = 0.0, steps_of(tx, jnp.float32(1.0))
    for i, step in enumerate(found):
        rate, decay = RATES[min(i, 2)], DECAYS[min(i, 2)]
        trace = (i + 1.0) + decay * trace
        np.testing.assert_allclose(step, -rate * trace, rtol=1e-6)


def test_a_schedule_for_each_tensor(tmp_path):
    rows = np.array([[0.1, 0.2], [0.3, 0.4]])
    values = {"learning_rate": rows.tolist()}
    tx = l2o.load_schedule(write(tmp_path / "s.json", base="optax:sgd", hyperparameters=values))
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    for i, step in enumerate(steps_of(tx, params, 3)):
        for j, name in enumerate("ab"):
            expected = -rows[min(i, 1), j] * (i + 1.0) * params[name]
            np.testing.assert_allclose(step[name], expected, rtol=1e-6)
    with pytest.raises(ValueError, match="`params` must have 2 tensors"):
        tx.init({"a": jnp.ones(2)})


def test_the_size_of_the_next_batch_is_in_the_state(tmp_path):
    values = {"learning_rate": RATES, "batch_fraction": (0.25, 0.5, 1.0)}
    tx = l2o.load_schedule(write(tmp_path / "s.json", base="sgdm", hyperparameters=values))
    state, found = tx.init(jnp.ones(2)), []
    for _ in range(4):
        found.append(float(l2o.batch_fraction(state)))
        _, state = tx.update(jnp.ones(2), state, jnp.ones(2))
    assert found == [0.25, 0.5, 1.0, 1.0]


def test_jit_and_chain(tmp_path):
    values = {"learning_rate": RATES, "b1": DECAYS}
    schedule = l2o.load_schedule(write(tmp_path / "s.json", base="adam", hyperparameters=values))
    tx = optax.chain(optax.clip(1.0), schedule)
    state = tx.init(jnp.ones(2))
    step = jax.jit(tx.update)
    for _ in range(2):
        updates, state = step(jnp.ones(2), state, jnp.ones(2))
    assert step._cache_size() == 1 and np.all(np.isfinite(updates))


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"base": "sgdm", "hyperparameters": {}},
        {"base": "sgdm", "hyperparameters": {"momentum": [0.1]}},
        {"base": "sgdm", "hyperparameters": {"learning_rate": []}},
        {"base": "sgdm", "hyperparameters": {"learning_rate": [None]}},
        {"base": "sgdm", "hyperparameters": {"learning_rate": [0.1], "momentum": [0.1, 0.2]}},
    ],
)
def test_what_is_no_schedule(tmp_path, content):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="`path` must be a schedule written by l2o schedule"):
        l2o.load_schedule(path)


def test_another_learned_base(tmp_path):
    values = {"learning_rate": RATES}
    path = write(tmp_path / "s.json", base="digits", base_sha256="ab", hyperparameters=values)
    with pytest.raises(ValueError, match="of the digits that is here"):
        l2o.load_schedule(path)
    with pytest.raises(ValueError, match=r"s.json \(No such file or directory\)"):
        l2o.load_schedule(tmp_path / "none" / "s.json")
