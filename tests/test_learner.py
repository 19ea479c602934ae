from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import THETA, decay_problem

from l2o.estimators.estimator import Estimator
from l2o.estimators.truncated_es import truncated_es
from l2o.learner import gradient_learner

pytestmark = pytest.mark.usefixtures("strict_ranks")


def known_gradient():
    """An estimator whose gradient is `data` times the number of estimates so far, plus one."""

    def estimate(key, theta, state, data):
        del key, theta
        return data * (state + 1.0), state + 1.0, {"meta_loss": state, "finite": jnp.float32(1.0)}

    return Estimator(
        init=lambda key, theta: jnp.float32(0.0),
        estimate=estimate,
        steps=12,
        data=jnp.array([3.0, -4.0]),
    )


def test_steps_follow_the_optimizer(key):
    estimator = known_gradient()
    learner = gradient_learner(estimator, optax.sgd(0.1))
    state = learner.init(key, THETA)
    assert learner.steps == 12
    for _ in range(2):
        state, metrics = learner.step(key, state, learner.data)
    np.testing.assert_allclose(state.theta, THETA - 0.1 * (1 + 2) * estimator.data, rtol=1e-6)
    np.testing.assert_array_equal(learner.theta(state), state.theta)
    np.testing.assert_allclose(metrics["meta_gradient_norm"], 10.0, rtol=1e-6)
    assert metrics["meta_loss"] == 1.0
    assert int(state.step) == 2 and float(state.estimator_state) == 2.0


def test_the_optimizer_keeps_its_state_and_sees_theta(key):
    """AdamW: needs its moments, and theta for the decay."""
    learner = gradient_learner(known_gradient(), optax.adamw(0.1, weight_decay=0.5))
    state = learner.init(key, THETA)
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    theta, opt_state = THETA, optimizer.init(THETA)
    for t in range(3):
        state, _ = learner.step(key, state, learner.data)
        updates, opt_state = optimizer.update(learner.data * (t + 1.0), opt_state, theta)
        theta = optax.apply_updates(theta, updates)
    np.testing.assert_allclose(state.theta, theta, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_meta_gradient_that_is_not_finite_is_left_out(bad, key):
    """The next one counts as if it had not been."""
    good = known_gradient()

    def estimate(key, theta, state, data):
        gradient, after, metrics = good.estimate(key, theta, state, data)
        return jnp.where(state == 1.0, bad, gradient), after, metrics

    learner = gradient_learner(replace(good, estimate=estimate), optax.adam(0.1))
    state = learner.init(key, THETA)
    for _ in range(3):
        state, _ = learner.step(key, state, learner.data)
    optimizer, theta = optax.adam(0.1), THETA
    opt_state = optimizer.init(theta)
    for t in (1.0, 3.0):
        updates, opt_state = optimizer.update(good.data * t, opt_state, theta)
        theta = optax.apply_updates(theta, updates)
    np.testing.assert_allclose(state.theta, theta, rtol=1e-6)
    assert int(state.step) == 3


def test_average_by_hand(key):
    """Decay min(0.3, (1 + t) / (10 + t)): 0.1, 2/11, 0.25, 0.3, 0.3."""
    learner = gradient_learner(known_gradient(), optax.sgd(0.1), ema_decay=0.3)
    state = learner.init(key, THETA)
    average = np.asarray(THETA)
    for decay in (0.1, 2 / 11, 0.25, 0.3, 0.3):
        state, _ = learner.step(key, state, learner.data)
        average = decay * average + (1 - decay) * np.asarray(state.theta)
        np.testing.assert_allclose(learner.theta(state), average, rtol=1e-5)
    assert not np.allclose(learner.theta(state), state.theta)


@pytest.mark.parametrize("ema_decay", [-0.1, 1.0, float("nan")])
def test_bad_ema_decay(ema_decay):
    message = rf"`ema_decay` must be in \[0, 1\); got {ema_decay}. Try ema_decay=0.98."
    with pytest.raises(ValueError, match=message):
        gradient_learner(known_gradient(), optax.sgd(0.1), ema_decay=ema_decay)


def test_finds_the_minimum(key):
    """Of Σ (θ - (1, -2))² by truncated ES, from the sign of its gradient on."""
    target = jnp.array([1.0, -2.0])
    bowl = lambda losses, theta, state: jnp.full_like(losses, jnp.sum((theta - target) ** 2))
    estimator = truncated_es(decay_problem(loss=bowl), num_pairs=8, std=0.1)
    learner = gradient_learner(estimator, optax.adam(0.1))

    def step(state, k):
        return learner.step(k, state, learner.data)

    state, metrics = jax.jit(lambda s, keys: jax.lax.scan(step, s, keys))(
        learner.init(key, THETA), jax.random.split(key, 150)
    )
    np.testing.assert_allclose(learner.theta(state), target, atol=0.1)
    assert metrics["meta_loss"][-1] < 0.1 * metrics["meta_loss"][0]
