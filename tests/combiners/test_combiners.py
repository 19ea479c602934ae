"""Combiners against closed forms, a general solver and their papers' pseudo-code."""

import jax
import jax.numpy as jnp
import moocore
import numpy as np
import optax
import pytest
from analytic import decay_problem
from estimator_table import once
from scipy.optimize import minimize

import l2o
from l2o.combiners.cagrad import RADIUS
from l2o.registry import COMBINERS

pytestmark = pytest.mark.usefixtures("strict_ranks")


def combined(name, gradients, weights=None, seed=0):
    """The combined gradient of rows, by the combiner of a name."""
    rows = jnp.asarray(gradients, jnp.float32)
    weights = jnp.ones(len(rows)) if weights is None else jnp.asarray(weights, jnp.float32)
    coefficients = jax.jit(COMBINERS[name])(jax.random.key(seed), rows @ rows.T, weights)
    return np.asarray(coefficients @ rows)


def drawn(num, dim=6, seed=0):
    """Gradients that oppose each other more often than not, of sizes a factor of ten apart."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(num, dim)) - 0.3 * rng.normal(size=dim)
    return rows * 10.0 ** rng.uniform(-0.5, 0.5, size=(num, 1))


@pytest.mark.parametrize("name", COMBINERS)
def test_gradients_that_are_alike_stay_so_in_direction(name):
    alike = np.tile([3.0, -4.0], (3, 1))
    found = combined(name, alike)
    scale = 1.0 + RADIUS if name == "cagrad" else 1.0
    np.testing.assert_allclose(found, scale * alike[0], rtol=1e-3)


@pytest.mark.parametrize("name", COMBINERS)
def test_what_has_no_weight_is_left_out(name):
    rows = drawn(4)
    without = combined(name, rows[[0, 2, 3]], seed=3)
    found = combined(name, rows, np.array([1.0, 0.0, 1.0, 1.0]), seed=3)
    if name != "pcgrad":  # whose orders are drawn anew
        np.testing.assert_allclose(found, without, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        found, combined(name, rows * [[1], [-9], [1], [1]], [1.0, 0.0, 1.0, 1.0], seed=3), rtol=1e-4
    )


@pytest.mark.parametrize("name", COMBINERS)
def test_units_do_not_matter(name):
    rows = drawn(3)
    np.testing.assert_allclose(
        combined(name, 1e3 * rows), 1e3 * combined(name, rows), rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("name", COMBINERS)
def test_no_gradient_at_all_gives_none(name):
    np.testing.assert_array_equal(combined(name, np.zeros((3, 2))), 0.0)


def shares_by_scipy(function, num):
    bounds, sums = [(0.0, 1.0)] * num, {"type": "eq", "fun": lambda a: np.sum(a) - 1.0}
    options = {"ftol": 1e-14, "maxiter": 1000}
    start = np.full(num, 1.0 / num)
    found = minimize(
        function, start, bounds=bounds, constraints=sums, method="SLSQP", options=options
    )
    assert found.success
    return found.x


@pytest.mark.parametrize("num", [2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_mgda_is_the_shortest_vector_of_the_hull(num, seed):
    rows = drawn(num, seed=seed)
    expected = shares_by_scipy(lambda a: np.sum((a @ rows) ** 2) / np.sum(rows**2), num) @ rows
    found = combined("mgda", rows)
    scale = np.sqrt(np.mean(np.sum(rows**2, 1)))
    np.testing.assert_allclose(found, expected, atol=2e-3 * scale)
    # No loss rises.
    assert (rows @ found >= found @ found - 1e-2 * scale**2).all()


def test_mgda_of_two_in_closed_form():
    for seed in range(20):
        first, second = drawn(2, seed=seed)
        difference = second - first
        share = np.clip(second @ difference / (difference @ difference), 0.0, 1.0)
        expected = share * first + (1.0 - share) * second
        np.testing.assert_allclose(combined("mgda", [first, second]), expected, atol=2e-3)


def test_mgda_weighs_small_gradients_that_oppose_each_other_beside_a_large_one():
    rows = np.array([[0.0, 0.0, 1.0], [1e-3, 0.0, 0.0], [-3e-3, 1e-4, 0.0]])
    found = combined("mgda", rows)
    np.testing.assert_allclose(rows @ found, found @ found, rtol=0.02, atol=1e-12)


@pytest.mark.parametrize("name", COMBINERS)
def test_all_left_out_gives_nothing(name):
    np.testing.assert_array_equal(combined(name, drawn(2), np.zeros(2)), 0.0)


def test_mgda_is_zero_where_one_can_fall_by_another_alone():
    np.testing.assert_allclose(combined("mgda", [[1.0, 0.0], [-3.0, 0.0]]), 0.0, atol=1e-3)


def by_pseudo_code(rows, order):
    """Algorithm 1 of Yu et al. (2020), the mean in place of the sum."""
    found = []
    for i, row in enumerate(rows):
        own = row.copy()
        for j in order[i]:
            if j != i and own @ rows[j] < 0:
                own -= own @ rows[j] / (rows[j] @ rows[j]) * rows[j]
        found.append(own)
    return np.mean(found, 0)


@pytest.mark.parametrize("num", [2, 3, 6])
def test_pcgrad_is_its_pseudo_code(num):
    for seed in range(5):
        rows, key = drawn(num, seed=seed), jax.random.key(seed)
        order = [np.asarray(jax.random.permutation(k, num)) for k in jax.random.split(key, num)]
        expected = by_pseudo_code(rows, order)
        np.testing.assert_allclose(combined("pcgrad", rows, seed=seed), expected, atol=1e-4)


@pytest.mark.parametrize("num", [2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_cagrad_is_the_best_for_the_worst_within_its_radius(num, seed):
    rows = drawn(num, seed=seed)
    mean = rows.mean(0)
    reach = RADIUS * np.linalg.norm(mean)
    square = np.sum(mean**2)
    shares = shares_by_scipy(
        lambda a: ((a @ rows) @ mean + reach * np.linalg.norm(a @ rows)) / square, num
    )
    best = mean + reach * (shares @ rows) / np.linalg.norm(shares @ rows)
    found = combined("cagrad", rows)
    assert np.linalg.norm(found - mean) <= 1.001 * reach
    # What it maximises is within a hundredth of the best; plain descent is further from it.
    assert (rows @ found).min() >= (rows @ best).min() - 0.01 * square
    assert (rows @ mean).min() <= (rows @ found).min() + 0.01 * square


@pytest.mark.parametrize("name", COMBINERS)
def test_weights_multiply_gradients(name):
    rows, weights = drawn(3), np.array([0.5, 1.0, 1.5])
    np.testing.assert_allclose(
        combined(name, rows, weights), combined(name, weights[:, None] * rows), rtol=1e-4, atol=1e-5
    )


def distances(x):
    """Two objectives, the squared distances to two points one apart, and their gradients."""
    from_target = x[None] - jnp.array([[0.0, 0.0], [1.0, 0.0]])
    return jnp.sum(jnp.square(from_target), -1), 2.0 * from_target


def descended(combine, starts, weights):
    """Where estimators of both objectives lead to together, from each start."""

    def one(i):
        def estimate(key, theta, state, weight):
            del key
            losses, gradients = distances(theta)
            numbers = {"meta_loss": losses[i], "finite": 1.0, "diverged": 0.0, "valid": 1.0}
            return weight * gradients[i], state, jax.tree.map(jnp.float32, numbers)

        return l2o.Estimator(init=lambda key, theta: (), estimate=estimate, steps=1)

    estimator = l2o.average_estimators({"near": one(0), "far": one(1)}, combine=combine)
    learner = l2o.gradient_learner(estimator, optax.sgd(0.1))

    def run(start, weights):
        data = {"near": weights[0], "far": weights[1]}
        step = lambda state, k: (learner.step(k, state, data)[0], None)
        first = learner.init(jax.random.key(0), start)
        state, _ = jax.lax.scan(step, first, jax.random.split(jax.random.key(1), 150))
        return learner.theta(state)

    return jax.jit(jax.vmap(run))(jnp.asarray(starts), jnp.asarray(weights))


@pytest.mark.parametrize("name", ["mean", *COMBINERS])
def test_each_reaches_the_front_of_two_quadratics(name):
    """The front is f₂ = (1 - √f₁)², whose hypervolume up to (1, 1) is 5/6."""
    positions, level = np.linspace(0.0, 1.0, 41, dtype=np.float32), np.full(41, 0.7, np.float32)
    if name in ("mean", "cagrad"):  # whose end depends on the weights
        starts = np.stack([np.full_like(positions, 0.5), level], 1)
        weights = 2.0 * np.stack([1.001 - positions, 0.001 + positions], 1)
    else:
        if name == "pcgrad":  # which goes to the middle first, and stops at the front
            level = np.full_like(level, 0.02)
        starts, weights = np.stack([positions, level], 1), np.ones((41, 2), np.float32)
    ends = descended(None if name == "mean" else COMBINERS[name], starts, weights)
    points = np.asarray(jax.vmap(lambda x: distances(x)[0])(ends), np.float64)
    assert moocore.hypervolume(points, ref=(1.0, 1.0)) >= 0.98 * 5 / 6
    assert np.abs(np.asarray(ends)[:, 1]).max() < 1e-3
    far = descended(None if name == "mean" else COMBINERS[name], [[0.4, 3.0]], [[1.0, 1.0]])
    assert 0.0 <= far[0, 0] <= 1.0 and abs(far[0, 1]) < 1e-3


def test_a_dead_part_is_left_out_of_what_is_combined(key):
    dead = decay_problem(loss=lambda losses, theta, state: losses * jnp.nan)
    parts = {
        name: l2o.pes(decay_problem(), num_pairs=2, std=std)
        for name, std in {"a": 0.1, "b": 0.2}.items()
    }
    alone, _, shares = once(l2o.average_estimators(parts, combine=l2o.mgda), key)
    parts["dead"] = l2o.pes(dead, num_pairs=2, std=0.1)
    found, _, metrics = once(l2o.average_estimators(parts, combine=l2o.mgda), key)
    np.testing.assert_allclose(found, alone, rtol=1e-4)
    assert metrics["dead/share"] == 0.0
    np.testing.assert_allclose(metrics["a/share"], shares["a/share"], rtol=1e-4)
    np.testing.assert_allclose(metrics["a/share"] + metrics["b/share"], 1.0, rtol=1e-5)
