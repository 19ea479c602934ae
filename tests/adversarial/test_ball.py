"""Points stay in the ball and in the range, and what leads out of them is dropped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2o.adversarial.ball import Ball, row_lengths

ROWS, NUMBERS = 5, 4
NORMS = ("linf", "l2")


def rows(seed: int, spread: float) -> jax.Array:
    drawn = np.random.default_rng(seed).normal(0.5, spread, (ROWS, NUMBERS))
    return jnp.asarray(drawn, jnp.float32)


def lengths(norm: str, offset: jax.Array) -> np.ndarray:
    return np.linalg.norm(np.asarray(offset), ord=np.inf if norm == "linf" else 2, axis=1)


BALLS = st.builds(
    Ball,
    norm=st.sampled_from(NORMS),
    radius=st.sampled_from((0.01, 0.3, 1.0, 3.0)),
    low=st.just(0.0),
    high=st.just(1.0),
)


@settings(max_examples=60, deadline=None)
@given(BALLS, st.integers(0, 1000), st.sampled_from((0.1, 1.0, 30.0)))
def test_a_projection_is_in_the_ball_and_the_range_and_is_its_own(ball, seed, spread):
    centre = jnp.clip(rows(seed, 0.5), 0.0, 1.0)
    points = rows(seed + 1, spread)
    moved = ball.project(points, centre)
    assert np.all(lengths(ball.norm, moved - centre) <= ball.radius * (1 + 1e-5) + 1e-6)
    assert np.all((moved >= 0.0) & (moved <= 1.0))
    np.testing.assert_allclose(ball.project(moved, centre), moved, rtol=1e-5, atol=1e-6)
    inside = centre + 0.5 * (moved - centre)
    np.testing.assert_allclose(ball.project(inside, centre), inside, rtol=1e-5, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(BALLS, st.integers(0, 1000))
def test_a_row_outside_of_the_range_may_stay_where_it_is(ball, seed):
    centre = rows(seed, 2.0)
    np.testing.assert_array_equal(ball.project(centre, centre), centre)
    moved = ball.project(rows(seed + 1, 3.0), centre)
    assert np.all(lengths(ball.norm, moved - centre) <= ball.radius * (1 + 1e-5) + 1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball_evenly(norm):
    ball, numbers = Ball(norm, 2.0), 3
    centre = jnp.ones((4000, numbers))
    offset = ball.random_start(jax.random.key(0), centre) - centre
    found = lengths(norm, offset) / 2.0
    assert found.max() <= 1.0 + 1e-6
    # The part of a ball within a fraction f of its radius is f to the power of the dimension.
    uniform = found**numbers
    assert abs(uniform.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 4000)
    assert np.all(np.abs(np.mean(np.sign(offset), axis=0)) < 4 / np.sqrt(4000))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e15])
def test_the_steepest_direction_has_length_one_however_small_the_gradient(norm, size):
    gradient = jnp.asarray([[3.0, -4.0], [0.0, 0.0]]) * size
    expected = [[1.0, -1.0], [0.0, 0.0]] if norm == "linf" else [[0.6, -0.8], [0.0, 0.0]]
    np.testing.assert_allclose(Ball(norm, 1.0).steepest(gradient), expected, rtol=1e-6)
    np.testing.assert_allclose(row_lengths(gradient)[0, 0], 5.0 * size, rtol=1e-6)


def test_what_leads_out_is_dropped():
    centre = jnp.array([[0.5, 0.95]])
    box = Ball("linf", 0.2, 0.0, 1.0)
    at = lambda x, y: jnp.array([[x, y]])
    stay = lambda direction, points: box.stay(direction, points, centre).tolist()[0]
    assert stay(at(1.0, 1.0), centre) == [1.0, 1.0]
    assert stay(at(1.0, 1.0), at(0.75, 1.1)) == [0.0, 0.0]  # beyond the ball, and the range
    assert stay(at(-1.0, -1.0), at(0.75, 1.1)) == [-1.0, -1.0]  # leads back
    sphere = Ball("l2", 0.2)
    out = sphere.stay(at(1.0, 1.0), centre + at(0.3, 0.0), centre)
    np.testing.assert_allclose(out, at(0.0, 1.0), atol=1e-6)
    back = at(-1.0, 1.0)
    np.testing.assert_allclose(sphere.stay(back, centre + at(0.3, 0.0), centre), back)
