import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import (
    HORIZON,
    NUM_WINDOWS,
    THETA,
    WINDOW,
    Toy,
    decay_gradient,
    decay_losses,
    decay_problem,
    myopic_decay_gradient,
    replicate,
)

from l2o.estimators import mean_of, pes, truncated_es
from l2o.estimators.antithetic import draw_perturbation
from l2o.estimators.estimator import Estimator
from l2o.estimators.pes import pes_gradient

pytestmark = pytest.mark.usefixtures("strict_ranks")

GATE = 4.0
"""Standard errors within which an unbiased estimate must lie; seeds are fixed."""


def errors_of(estimator, theta, truth, skip=NUM_WINDOWS, take=2 * NUM_WINDOWS, num_replicates=64):
    mean, error = replicate(estimator, theta, num_replicates=num_replicates, skip=skip, take=take)
    return np.abs(mean - truth) / error


def test_closed_form_is_the_gradient_of_the_mean_loss():
    exact = jax.grad(lambda theta: jnp.mean(decay_losses(theta, jnp.zeros(2), HORIZON)[1]))(THETA)
    np.testing.assert_allclose(decay_gradient(THETA), exact, rtol=1e-5)


def test_pes_is_unbiased_and_truncated_es_is_not():
    problem, truth, myopic = decay_problem(), decay_gradient(THETA), myopic_decay_gradient(THETA)
    assert np.all(errors_of(pes(problem, num_pairs=32, std=0.1), THETA, truth) < GATE)
    truncated = truncated_es(problem, num_pairs=32, std=0.1)
    assert np.all(errors_of(truncated, THETA, truth) > 5 * GATE)
    assert np.all(errors_of(truncated, THETA, myopic) < GATE)


def test_credit_of_the_last_step_when_runs_end_inside_windows():
    toy = Toy()
    options = {"num_pairs": 64, "std": 0.1}
    sizes = {"skip": 7, "take": 28, "num_replicates": 100}
    theta = jnp.float32(toy.theta)
    exclusive = pes(toy.problem(), **options)
    inclusive = pes(toy.problem(), **options, credit="inclusive")
    assert errors_of(exclusive, theta, toy.gradient, **sizes) < GATE
    mean, error = replicate(inclusive, theta, **sizes)
    assert toy.gradient - mean > 10 * error
    assert abs(mean - 0.404) < 0.003 * GATE + GATE * error  # algorithms.md §13


def test_pes_and_truncated_es_are_full_es_when_a_window_is_the_horizon(key):
    problem = decay_problem(window=HORIZON, num_windows=1)
    estimators = {"pes": pes, "es": truncated_es}
    found = {}
    for name, make in estimators.items():
        estimator = make(problem, num_pairs=3, std=0.1)
        state, gradients = jax.jit(estimator.init)(key, THETA), []
        for step in range(2):  # the second would feel a ξ that was not reset
            step_key = jax.random.fold_in(key, step)
            gradient, state, _ = jax.jit(estimator.estimate)(step_key, THETA, state, ())
            gradients.append(gradient)
        found[name] = np.stack(gradients)
    np.testing.assert_allclose(found["pes"], found["es"], rtol=1e-5)

    def full_es(step_key, pair):
        k_estimate, _ = jax.random.split(jax.random.fold_in(step_key, pair))
        k_perturbation, _ = jax.random.split(k_estimate)
        noise = draw_perturbation(k_perturbation, THETA, 0.1)
        mean_loss = lambda theta: jnp.mean(decay_losses(theta, jnp.zeros(2), HORIZON)[1])
        return noise * (mean_loss(THETA + noise) - mean_loss(THETA - noise)) / (2 * 0.1**2)

    expected = [
        np.mean([full_es(jax.random.fold_in(key, step), pair) for pair in range(3)], axis=0)
        for step in range(2)
    ]
    np.testing.assert_allclose(found["es"], expected, rtol=2e-4)


def test_linear_loss_has_no_smoothing_bias(key):
    def gradient(std, loss):
        estimator = truncated_es(decay_problem(loss=loss), num_pairs=4, std=std)
        return jax.jit(estimator.estimate)(key, THETA, jax.jit(estimator.init)(key, THETA), ())[0]

    linear = lambda losses, theta, state: jnp.full_like(losses, theta @ jnp.array([1.0, -2.0]))
    cubic = lambda losses, theta, state: jnp.full_like(losses, jnp.sum(theta**3))
    np.testing.assert_allclose(gradient(0.1, linear), gradient(10.0, linear), rtol=1e-4)
    assert np.all(np.abs(gradient(0.1, cubic) - gradient(10.0, cubic)) > 1.0)


def gradients_of_pairs(make, problem, num_pairs, key, **options):
    """Each pair's gradient, from means over one pair, two pairs, ..."""
    sums = [np.zeros(2)]
    for n in range(1, num_pairs + 1):
        estimator = make(problem, num_pairs=n, std=0.1, **options)
        gradient, _, _ = jax.jit(estimator.estimate)(
            key, THETA, jax.jit(estimator.init)(key, THETA), ()
        )
        sums.append(n * np.asarray(gradient))
    return np.diff(sums, axis=0)


@pytest.mark.parametrize("make", [pes, truncated_es])
def test_a_pair_depends_on_its_global_index_only(make, key):
    """Growing the population leaves the pairs before as they were: their sum only grows."""
    problem = decay_problem()
    separate = gradients_of_pairs(make, problem, 4, key)
    assert len({tuple(row) for row in np.round(separate, 3)}) == 4
    few, many = (make(problem, num_pairs=n, std=0.1).init(key, THETA) for n in (2, 4))
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, b[:2])
    estimator = make(problem, num_pairs=4, std=0.1)
    gradient, _, _ = jax.jit(estimator.estimate)(
        key, THETA, jax.jit(estimator.init)(key, THETA), ()
    )
    np.testing.assert_allclose(gradient, np.mean(separate, axis=0), rtol=1e-4)


@pytest.mark.parametrize("make", [pes, truncated_es])
@pytest.mark.parametrize("is_bad_member", [0, 1])
def test_a_nan_member_masks_its_pair_only(make, is_bad_member, key):
    """Pair 1 is poisoned; the losses of one of its members turn NaN."""

    def poisoned(losses, theta, state):
        # θ+ε and θ-ε lie on opposite sides of θ, so just one member is hit.
        side = jnp.sign(theta[0] - THETA[0])
        return jnp.where((state.instance > 0) & (side == state.instance - 2), jnp.nan, losses)

    num_pairs = 4
    separate = gradients_of_pairs(make, decay_problem(), num_pairs, key)
    estimator = make(decay_problem(loss=poisoned), num_pairs=num_pairs, std=0.1)
    state = jax.jit(estimator.init)(key, THETA)
    inner = state.inner if make is pes else state
    inner = inner._replace(instance=jnp.array([0, 1 + 2 * is_bad_member, 0, 0]))
    state = state._replace(inner=inner) if make is pes else inner
    gradient, after, metrics = jax.jit(estimator.estimate)(key, THETA, state, ())

    np.testing.assert_allclose(gradient, np.mean(separate[[0, 2, 3]], axis=0), rtol=1e-4)
    assert metrics["valid_pairs"] == 0.75
    np.testing.assert_allclose(metrics["finite"], 1 - 1 / 8)
    assert np.isfinite(metrics["meta_loss"])
    inner = after.inner if make is pes else after
    np.testing.assert_array_equal(inner.instance, np.zeros(4))
    np.testing.assert_array_equal(inner.params[1], np.zeros_like(inner.params[1]))
    assert inner.step[1] == 0
    if make is pes:
        np.testing.assert_array_equal(after.accumulated[1], np.zeros(2))
        assert np.any(np.asarray(after.accumulated)[[0, 2, 3]] != 0)
    np.testing.assert_array_equal(jnp.isfinite(jnp.stack(jax.tree.leaves(gradient))), True)


def test_no_valid_pair_gives_a_zero_gradient_and_says_so(key):
    always = lambda losses, theta, state: losses * jnp.nan
    estimator = pes(decay_problem(loss=always), num_pairs=2, std=0.1)
    gradient, _, metrics = jax.jit(estimator.estimate)(
        key, THETA, jax.jit(estimator.init)(key, THETA), ()
    )
    np.testing.assert_array_equal(gradient, np.zeros(2))
    assert np.isnan(metrics["meta_loss"])
    assert metrics["valid_pairs"] == 0 and metrics["finite"] == 0


def test_members_of_a_pair_share_their_draws_and_pairs_do_not(key):
    estimator = pes(decay_problem(), num_pairs=4, std=0.1)
    _, state, _ = jax.jit(estimator.estimate)(key, THETA, jax.jit(estimator.init)(key, THETA), ())
    draws = np.asarray(state.inner.opt_state)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert len(set(draws[:, 0].tolist())) == 4
    assert np.any(np.asarray(state.inner.params)[:, 0] != np.asarray(state.inner.params)[:, 1])


def test_truncated_es_goes_on_from_the_plus_member(key):
    problem = decay_problem()
    estimator = truncated_es(problem, num_pairs=1, std=0.1)
    state = jax.jit(estimator.init)(key, THETA)
    state = state._replace(horizon=jnp.array([HORIZON]))
    gradient, after, _ = jax.jit(estimator.estimate)(key, THETA, state, ())
    # The gradient points along +ε or -ε; on this loss and size of noise, delta's sign tells.
    k_estimate, _ = jax.random.split(jax.random.fold_in(key, 0))
    noise = draw_perturbation(jax.random.split(k_estimate)[0], THETA, 0.1)
    expected, _ = decay_losses(THETA + noise, jnp.zeros(2), WINDOW)
    np.testing.assert_allclose(after.params[0], expected, rtol=1e-5)
    assert np.all(np.isfinite(gradient))


def test_meta_loss_is_the_mean_over_steps_and_members(key):
    estimator = pes(decay_problem(), num_pairs=2, std=1e-6)
    state = jax.jit(estimator.init)(key, THETA)
    _, _, metrics = jax.jit(estimator.estimate)(key, THETA, state, ())
    expected = jnp.mean(decay_losses(THETA, jnp.zeros(2), WINDOW)[1])
    np.testing.assert_allclose(metrics["meta_loss"], expected, rtol=1e-4)
    assert estimator.steps == 2 * 2 * WINDOW


def test_exclusive_credit_by_hand():
    """algorithms.md §23.3: particle 0 has A = (-.1 - .3)/3 and B = -.4/3."""
    delta = jnp.array([-0.1, -0.3, 9.0, -0.4])  # step 2 does not count
    done = jnp.array([False, True, False, False])
    mask = jnp.array([True, True, False, True])
    gradient, carried = pes_gradient(
        delta, done, mask, jnp.array(0.02), jnp.array(0.01), 0.01, "exclusive"
    )
    expected = (-0.4 / 3 * 0.03 + -0.4 / 3 * 0.01) / (2 * 0.01**2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(carried, 0.01)


@pytest.mark.parametrize(("credit", "carried_expected"), [("exclusive", 0.0), ("inclusive", 0.01)])
def test_a_run_that_ends_with_the_window_leaves_nothing_behind(credit, carried_expected):
    done = jnp.array([False, True])
    gradient, carried = pes_gradient(
        jnp.array([1.0, 3.0]),
        done,
        ~jnp.zeros(2, bool),
        jnp.array(0.02),
        jnp.array(0.01),
        0.01,
        credit,
    )
    weights = (2.0, 0.0) if credit == "exclusive" else (0.5, 1.5)
    expected = (weights[0] * 0.03 + weights[1] * 0.01) / (2 * 0.01**2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(carried, carried_expected)


def test_mean_of_leaves_the_others_streams_unchanged(key):
    first, second = (truncated_es(decay_problem(), num_pairs=2, std=s) for s in (0.1, 0.2))
    alone, both = mean_of({"a": first}), mean_of({"b": second, "a": first})
    results = {}
    for name, estimator in {"alone": alone, "both": both}.items():
        state = jax.jit(estimator.init)(key, THETA)
        results[name] = jax.jit(estimator.estimate)(key, THETA, state, estimator.data)
    for x, y in zip(
        jax.tree.leaves(results["alone"][1]["a"]),
        jax.tree.leaves(results["both"][1]["a"]),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    metrics = results["both"][2]
    assert metrics["a/meta_loss"] == results["alone"][2]["a/meta_loss"]
    assert metrics["a/meta_loss"] != metrics["b/meta_loss"]
    np.testing.assert_allclose(
        metrics["meta_loss"], (metrics["a/meta_loss"] + metrics["b/meta_loss"]) / 2, rtol=1e-6
    )
    only_b = mean_of({"b": second})
    gradient_b, _, _ = jax.jit(only_b.estimate)(key, THETA, only_b.init(key, THETA), only_b.data)
    np.testing.assert_allclose(
        results["both"][0], (results["alone"][0] + gradient_b) / 2, rtol=1e-5
    )
    assert both.steps == first.steps + second.steps


def test_mean_of_nothing():
    with pytest.raises(ValueError, match="`estimators` must not be empty"):
        mean_of({})


@pytest.mark.parametrize("make", [pes, truncated_es])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 0, "std": 0.1}, "`num_pairs` must be at least 1; got 0"),
        ({"num_pairs": 2, "std": 0.0}, "`std` must be positive; got 0.0"),
        ({"num_pairs": 2, "std": float("nan")}, "`std` must be positive; got nan"),
    ],
)
def test_bad_arguments(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(decay_problem(), **options)


def test_estimator_is_what_the_constructors_return():
    assert isinstance(pes(decay_problem(), num_pairs=1, std=0.1), Estimator)
