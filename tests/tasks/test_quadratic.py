"""Closed-form problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from l2o.tasks.quadratic import random_rotation, rosenbrock, rotated_quadratic


def test_rotations_are_uniform():
    """Orthogonal, and with the moments of Haar's measure within four standard errors."""
    dim, draws = 3, 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    q = np.asarray(jax.jit(jax.vmap(lambda key: random_rotation(key, dim)))(keys), np.float64)
    np.testing.assert_allclose(
        q @ q.swapaxes(1, 2), np.broadcast_to(np.eye(dim), q.shape), atol=1e-5
    )

    def check(values, expected):
        error = np.std(values, axis=0) / np.sqrt(draws)
        assert np.all(np.abs(np.mean(values, axis=0) - expected) < 4.0 * error)

    check(q, 0.0)
    check(q**2, 1.0 / dim)
    check(q**4, 3.0 / (dim * (dim + 2)))
    check(np.linalg.det(q), 0.0)
    check(np.trace(q, axis1=1, axis2=2) ** 2, 1.0)


def test_quadratic_has_its_minimum_where_it_says(key):
    task = rotated_quadratic(dim=3, noise=0.1)
    instance = task.sample(key)
    shift = task.batch(key, instance, (), "train")
    best = {"x": instance["minimum"] + shift}
    loss, grads = jax.value_and_grad(task.loss)(best, shift, instance)
    assert loss < 1e-10 and np.max(np.abs(grads["x"])) < 1e-5
    np.testing.assert_allclose(
        task.metrics(best, shift, instance)["distance_to_minimum"],
        jnp.linalg.norm(shift),
        rtol=1e-5,
    )
    rotation = instance["rotation"]
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    hessian = jax.hessian(lambda x: task.loss({"x": x}, shift, instance))(best["x"])
    np.testing.assert_allclose(
        np.linalg.eigvalsh(hessian), np.sort(instance["curvature"]), rtol=1e-4
    )
    assert np.all((instance["curvature"] >= 0.01) & (instance["curvature"] <= 1.0))
    np.testing.assert_allclose(
        np.std(
            jax.vmap(lambda k: task.batch(k, instance, (), "train"))(jax.random.split(key, 1000))
        ),
        0.1,
        rtol=0.1,
    )


def test_rosenbrock_has_its_minimum_at_one_one(key):
    task = rosenbrock()
    instance = task.sample(key)
    tilt = task.batch(key, instance, (), "train")
    loss, grads = jax.value_and_grad(task.loss)({"xy": jnp.ones(2)}, tilt, instance)
    assert loss == 0 and not np.any(grads["xy"])
    assert 1.0 <= instance["steepness"] <= 100.0
    off = task.loss({"xy": jnp.array([2.0, 3.0])}, tilt, instance)
    np.testing.assert_allclose(off, 1.0 + instance["steepness"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "`dim` must be at least 1; got 0. Try dim=10."),
        ({"noise": -1.0}, "`noise` must not be negative; got -1.0. Try noise=0.1."),
    ],
)
def test_bad_quadratics(options, message):
    with pytest.raises(ValueError, match=message):
        rotated_quadratic(**options)
