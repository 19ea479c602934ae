"""Rules that move the weights of tasks, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import decay_problem
from estimator_table import once

import l2o
from l2o.registry import WEIGHTINGS

EQUAL = jnp.array([0.5, 0.5])


def after(rule, rows, given=EQUAL):
    """Weights after meta-losses of several outer steps, a row each."""
    state = rule.init(given)
    for row in rows:
        state = rule.update(state, jnp.array(row))
    return np.asarray(rule.weights(state))


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_weights_begin_as_given_sum_to_one_and_keep_a_floor(name):
    given, rule = jnp.array([0.6, 0.3, 0.1]), WEIGHTINGS[name]()
    np.testing.assert_allclose(after(rule, [], given), given, rtol=1e-6)
    np.testing.assert_allclose(after(rule, [[jnp.nan] * 3], given), given, rtol=1e-6)
    rows = np.random.default_rng(0).normal(size=(30, 3)).cumsum(axis=0) * [1.0, 10.0, 0.0]
    rows[::4, 0] = np.nan
    found = after(rule, rows, given)
    np.testing.assert_allclose(found.sum(), 1.0, rtol=1e-6)
    assert np.all(found > 0.09 * given) and abs(found - given).max() > 0.1


def test_the_worst_case_of_two_quadratics():
    """Of x² and 4(x - 1)² the larger is least at x = 2/3, with multipliers 2/3 and 1/3."""

    def quadratic(scale, target):
        def estimate(key, theta, state, data):
            loss = scale * jnp.square(theta - target)
            metrics = {"meta_loss": loss, "finite": 1.0, "diverged": 0.0, "valid": 1.0}
            return jax.grad(lambda x: scale * jnp.square(x - target))(theta), state, metrics

        return l2o.Estimator(init=lambda key, theta: (), estimate=estimate, steps=1)

    parts = {"flat": quadratic(1.0, 0.0), "steep": quadratic(4.0, 1.0)}
    rule = l2o.worst_case(rate=0.05, floor=0.0)
    learner = l2o.gradient_learner(l2o.average_estimators(parts, weighting=rule), optax.sgd(0.05))

    def step(state, key):
        state, metrics = learner.step(key, state, learner.data)
        return state, (metrics["flat/weight"], metrics["meta_loss"])

    first = learner.init(jax.random.key(0), jnp.float32(0.0))
    state, (weights, losses) = jax.lax.scan(step, first, jax.random.split(jax.random.key(1), 2000))
    np.testing.assert_allclose(state.theta, 2 / 3, atol=1e-3)
    np.testing.assert_allclose(weights[-1], 2 / 3, atol=1e-3)
    np.testing.assert_allclose(losses[-1], 4 / 9, atol=1e-3)  # both, whatever their weights
    np.testing.assert_allclose(losses[0], 2.0, rtol=1e-6)  # their mean by the given weights


def test_progress_is_the_distance_of_two_averages():
    rule = l2o.learning_progress(fast_decay=0.5, slow_decay=0.75, floor=0.2)
    # From 4 to 0 and from 2 to 0: fast averages 2 and 1, slow ones 3 and 1.5, so 2 to 1.
    found = after(rule, [[4.0, 2.0], [0.0, 0.0]])
    np.testing.assert_allclose(found, 0.2 * 0.5 + 0.8 * np.array([2, 1]) / 3, rtol=1e-6)
    # A task that gets worse counts as one that gets better; what is unknown changes nothing.
    np.testing.assert_allclose(after(rule, [[0.0, 2.0], [4.0, 0.0]]), found, rtol=1e-6)
    np.testing.assert_allclose(
        after(rule, [[4.0, 2.0], [0.0, 0.0], [jnp.nan, jnp.inf]]), found, rtol=1e-6
    )
    np.testing.assert_allclose(after(rule, [[1.0, 1.0]] + [[1.0, 0.0]] * 2), [0.1, 0.9], rtol=1e-6)


def test_weights_of_an_outer_step_come_from_those_before(key):
    """So they do not depend on the noise of the gradients that they weigh."""
    parts = {
        name: l2o.pes(decay_problem(loss=lambda x, theta, state, b=b: x + b), num_pairs=2, std=0.1)
        for name, b in {"low": 0.0, "high": 1.0}.items()
    }
    plain, _, numbers = once(l2o.average_estimators(parts), key)
    rule = l2o.worst_case(rate=1.0)
    estimator = l2o.average_estimators(parts, weighting=rule)
    found, state, metrics = once(estimator, key)
    np.testing.assert_allclose(found, plain, rtol=1e-5)
    assert metrics["low/weight"] == metrics["high/weight"] == 0.5
    assert metrics["meta_loss"] == numbers["meta_loss"]
    low, high = rule.weights(state.weighting)
    gap = numbers["high/meta_loss"] - numbers["low/meta_loss"]
    np.testing.assert_allclose(
        [low, high], 0.05 + 0.9 * jax.nn.softmax(jnp.array([0.0, gap])), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: l2o.worst_case(rate=0.0), "`rate` must be positive and finite; got 0.0. Try"),
        (lambda: l2o.worst_case(floor=-0.1), "`floor` must be from 0 to 1; got -0.1. Try floor=0"),
        (lambda: l2o.learning_progress(floor=2), "`floor` must be from 0 to 1; got 2"),
        (
            lambda: l2o.learning_progress(fast_decay=0.99),
            "`fast_decay` and `slow_decay` must be from 0 up, below 1 and in this order; got 0.99 "
            "and 0.98. Try",
        ),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(ValueError, match=message):
        make()
