"""Projected gradient ascent: closed forms of linear models, and Foolbox's points."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2o.adversarial.ball import Ball
from l2o.adversarial.pgd import ascend, strongest

GOLDEN = Path(__file__).parents[1] / "golden" / "pgd.npz"
WEIGHTS = jnp.array([0.5, -2.0, 1.0])


@pytest.mark.parametrize(("norm", "steps"), [("linf", 3), ("linf", 25), ("l2", 25)])
def test_it_reaches_the_worst_of_a_linear_function(norm, steps):
    """Over a ball it is the radius times the dual norm of the weights."""
    ball, inputs = Ball(norm, 0.3), jnp.arange(12.0).reshape(4, 3)
    gradient = lambda points: jnp.broadcast_to(WEIGHTS, points.shape)
    start = ball.random_start(jax.random.key(0), inputs)
    points = ascend(gradient, start, inputs, ball, steps=steps)
    dual = np.linalg.norm(WEIGHTS, ord=1 if norm == "linf" else 2)
    # Steps of the Euclidean ball end on its surface, and turn to the worst point bit by bit.
    rise = (points - inputs) @ WEIGHTS
    np.testing.assert_allclose(rise, 0.3 * dual, rtol=1e-5 if norm == "linf" else 0.01)


def test_it_reaches_the_corner_of_ball_and_range():
    ball, inputs = Ball("linf", 0.3, 0.0, 1.0), jnp.array([[0.9, 0.5, 0.1]])
    gradient = lambda points: jnp.broadcast_to(WEIGHTS, points.shape)
    points = ascend(gradient, inputs, inputs, ball, steps=10)
    np.testing.assert_allclose(points, [[1.0, 0.2, 0.4]], rtol=1e-6)


def test_of_several_starts_each_row_keeps_its_worst():
    """A function with two hills: which one a row climbs is decided by its start."""
    score = lambda x: jnp.where(x > 0, 2.0 * x, -x)[:, 0]
    gradient = jax.grad(lambda x: jnp.sum(score(x)))
    inputs, ball = jnp.zeros((32, 1)), Ball("linf", 1.0)
    climb = lambda number: strongest(
        jax.random.key(1), gradient, score, inputs, ball, steps=5, restarts=number
    )
    one, many = climb(1)[:, 0], climb(12)[:, 0]
    assert set(np.unique(one)) == {-1.0, 1.0}
    np.testing.assert_array_equal(many, 1.0)


def test_given_rows_stay_where_nothing_is_worse():
    inputs = jnp.ones((3, 2))
    score = lambda x: -jnp.sum(jnp.square(x - 1.0), axis=1)
    wrong = jax.grad(lambda x: jnp.sum(jnp.square(x)))  # a gradient that misleads
    ball = Ball("l2", 0.5)
    found = strongest(jax.random.key(0), wrong, score, inputs, ball, steps=3, restarts=2)
    np.testing.assert_array_equal(found, inputs)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_moves_rows_where_foolbox_does(norm):
    """From the same start with the same steps, on a trained network; see tests/golden."""
    with np.load(GOLDEN) as stored:
        golden = dict(stored)
    targets = golden["targets"]

    def loss(points: jax.Array) -> jax.Array:
        hidden = jax.nn.relu(points @ golden["w0"] + golden["b0"])
        log_probs = jax.nn.log_softmax(hidden @ golden["w1"] + golden["b1"])
        return -jnp.mean(log_probs[jnp.arange(len(targets)), targets])

    start, inputs = jnp.asarray(golden[f"{norm}_start"]), jnp.asarray(golden["inputs"])
    points = ascend(
        jax.grad(loss),
        start,
        inputs,
        Ball(norm, float(golden[f"{norm}_radius"]), 0.0, 1.0),
        steps=int(golden["steps"]),
        step_size=float(golden[f"{norm}_step_size"]),
    )
    assert float(jnp.max(jnp.abs(start - golden[f"{norm}_points"]))) > 0.1
    np.testing.assert_allclose(points, golden[f"{norm}_points"], atol=1e-5)
