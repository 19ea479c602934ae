"""The control without gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o.adversarial.ball import Ball
from l2o.adversarial.inputs import input_gradient, row_scores
from l2o.adversarial.pgd import strongest
from l2o.adversarial.random_search import random_search
from l2o.tasks.digits import digits_mlp

WEIGHTS = jnp.array([0.5, -2.0, 1.0, 0.25])


@pytest.mark.parametrize(("norm", "part"), [("linf", 0.999), ("l2", 0.85)])
def test_it_nears_the_worst_of_a_linear_function_and_never_passes_it(norm, part):
    ball, inputs = Ball(norm, 0.3), jnp.zeros((6, 4))
    score = lambda points: points @ WEIGHTS
    found = random_search(jax.random.key(0), score, inputs, ball, evaluations=200)
    worst = 0.3 * np.linalg.norm(WEIGHTS, ord=1 if norm == "linf" else 2)
    assert np.all(score(found) <= worst * 1.0001)
    assert np.all(score(found) >= part * worst)


def test_more_evaluations_find_no_less():
    ball, inputs = Ball("linf", 0.3, 0.0, 1.0), jnp.full((6, 20), 0.2)
    score = lambda points: points @ jnp.arange(-10.0, 10.0)
    found = [
        score(random_search(jax.random.key(0), score, inputs, ball, evaluations=number))
        for number in (2, 10, 50)
    ]
    assert np.all(found[0] >= score(inputs))
    assert np.mean(found[2]) > np.mean(found[1]) > np.mean(found[0])


def test_it_finds_what_a_masked_gradient_hides():
    """A score of steps has no gradient, and is searched all the same."""
    score = lambda points: jnp.floor(4.0 * jnp.sum(points, axis=1))
    inputs = jnp.zeros((3, 4))
    assert not np.any(jax.grad(lambda x: jnp.sum(score(x)))(inputs))
    found = random_search(jax.random.key(0), score, inputs, Ball("linf", 0.5), evaluations=60)
    np.testing.assert_array_equal(score(found), 8.0)


def test_it_finds_no_more_than_gradients_do_on_a_trained_network(key):
    """On which gradients are not masked: 300 losses against 60 gradients, all test rows."""
    task, ball = digits_mlp().evaluation[0], Ball("linf", 0.1, 0.0, 1.0)
    networks = l2o.trained_networks(task, optax.adam(0.01), key, number=1, steps=150)
    params, instance = jax.tree.map(lambda x: x[0], networks)

    def fooled(data):
        rows = task.all_rows(instance, data, "test")
        score = lambda x: row_scores(task, params, rows._replace(inputs=x), instance)
        gradient = input_gradient(task, params, rows, instance)
        by_ascent = strongest(key, gradient, score, rows.inputs, ball, steps=20, restarts=3)
        by_search = random_search(key, score, rows.inputs, ball, evaluations=300)
        return [jnp.mean(score(x) > 1e4) for x in (rows.inputs, by_search, by_ascent)]

    clean, by_search, by_ascent = jax.jit(fooled)(task.data)
    assert clean + 0.2 < by_search <= by_ascent
