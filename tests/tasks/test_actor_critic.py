"""Actor and critic."""

import jax
import jax.numpy as jnp
import numpy as np

from l2o.tasks.networks import actor_critic


def test_outputs_are_those_of_dense_layers(key):
    weights = actor_critic.init(key, 3, (5, 4), 2)["actor"]
    weights = {name: x + 0.1 for name, x in weights.items()}
    inputs = np.asarray(jax.random.normal(key, (6, 7, 3)))
    expected = [np.maximum(inputs @ weights["w0"] + weights["b0"], 0.0)]
    expected.append(np.maximum(expected[0] @ weights["w1"] + weights["b1"], 0.0))
    expected.append(expected[1] @ weights["w2"] + weights["b2"])
    for found, x in zip(actor_critic.layers(weights, jnp.asarray(inputs)), expected, strict=True):
        np.testing.assert_allclose(found, x, rtol=1e-4, atol=1e-5)


def test_an_agent_begins_by_acting_at_random(key):
    params = actor_critic.init(key, 400, (64, 64), 3)
    for name, spread in (("actor", 0.01), ("critic", 1.0)):
        for i, inputs in enumerate((400, 64, 64)):
            weights = params[name][f"w{i}"]
            expected = (2.0 / inputs) ** 0.5 * (spread if i == 2 else 1.0)
            error = expected / (2.0 * weights.size) ** 0.5
            assert abs(np.std(weights) - expected) < 4.0 * error
            assert not np.any(params[name][f"b{i}"])
    assert not np.allclose(params["actor"]["w0"], params["critic"]["w0"])


def test_neurons_that_are_never_active_are_dormant():
    """Of four neurons the third is always 0, the last one's mean is twice that of the others."""
    weights = {"w0": jnp.eye(4), "b0": jnp.zeros(4), "w1": jnp.ones((4, 2)), "b1": jnp.zeros(2)}
    inputs = jnp.array([[1.0, 3.0, -1.0, 4.0], [3.0, 1.0, -2.0, 4.0]])
    hidden, outputs = actor_critic.dormancy(weights, inputs)
    np.testing.assert_allclose(hidden, [1.0, 1.0, 0.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(outputs, [1.0, 1.0])
    assert actor_critic.dormant_fraction(weights, inputs) == 0.25
