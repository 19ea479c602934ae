"""Estimators against truth, on problems whose meta-gradient is known."""

from dataclasses import replace

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
    bowl_task,
    decay_gradient,
    decay_losses,
    decay_problem,
    displacement,
    inclusive_credit,
    myopic_decay_gradient,
    pes_pair,
    replicate,
)
from estimator_table import BIASED, EVERY, EVOLUTION, UNBIASED, make, once
from jax.flatten_util import ravel_pytree
from user_module import momentum_rate

from l2o.estimators.estimator import Estimator
from l2o.estimators.full_grad import full_grad
from l2o.estimators.pes import credit_window, pes
from l2o.estimators.truncated_es import truncated_es
from l2o.estimators.truncated_grad import truncated_grad
from l2o.estimators.variance_weighted import variance, variance_weighted, weigh
from l2o.objective import Objective
from l2o.optimizers.adafac_mlp import adafac_mlp
from l2o.problem import inner_problem, unroll_run
from l2o.registry import DESIGNS

pytestmark = pytest.mark.usefixtures("strict_ranks")

GATE = 4.0
"""Standard errors within which an unbiased estimate must lie; seeds are fixed."""


def errors_of(estimator, theta, truth, skip=NUM_WINDOWS, take=2 * NUM_WINDOWS, num_replicates=64):
    mean, error = replicate(estimator, theta, num_replicates=num_replicates, skip=skip, take=take)
    # An exact estimator has no spread but that of rounding.
    return np.abs(mean - truth) / np.maximum(error, 1e-5)


def test_closed_form_is_the_gradient_of_the_mean_loss():
    exact = jax.grad(lambda theta: jnp.mean(decay_losses(theta, jnp.zeros(2), HORIZON)[1]))(THETA)
    np.testing.assert_allclose(decay_gradient(THETA), exact, rtol=1e-5)


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased(name):
    errors = errors_of(make(name, decay_problem()), THETA, decay_gradient(THETA))
    assert np.all(errors < GATE)


@pytest.mark.parametrize("name", BIASED)
def test_biased_towards_what_a_window_shows(name):
    estimator = make(name, decay_problem())
    mean, error = replicate(estimator, THETA, num_replicates=64, skip=NUM_WINDOWS, take=8)
    assert np.all(np.abs(mean - decay_gradient(THETA)) > 5 * GATE * error)
    # Truncated ES goes on from a perturbed member and the others from theirs: the same on average.
    assert np.all(np.abs(mean - myopic_decay_gradient(THETA)) < GATE * np.maximum(error, 1e-5))


@pytest.mark.parametrize("name", ["pes", "nres"])
def test_runs_that_end_inside_windows(name):
    """Unbiased all the same: the toy's runs of six steps end inside windows of four."""
    toy = Toy()
    estimator = make(name, toy.problem(), num_pairs=64)
    sizes = {"skip": 7, "take": 28, "num_replicates": 100}
    mean, error = replicate(estimator, jnp.float32(toy.theta), **sizes)
    assert abs(mean - toy.gradient) < GATE * error
    assert error < 0.01


def test_inclusive_credit_is_biased_when_runs_end_inside_windows(monkeypatch):
    toy = Toy()
    monkeypatch.setattr("l2o.estimators.pes.credit_window", inclusive_credit)
    inclusive = pes(toy.problem(), num_pairs=64, std=0.1)
    sizes = {"skip": 7, "take": 28, "num_replicates": 100}
    mean, error = replicate(inclusive, jnp.float32(toy.theta), **sizes)
    assert toy.gradient - mean > 10 * error
    assert abs(mean - 0.404) < 0.003 * GATE + GATE * error  # measured with the original's credit


def test_noise_reuse_has_less_variance_than_persistent_es_on_long_runs():
    """One estimate at random stages: what PES has felt grows with the windows of a run."""
    variances = {}
    for num_windows in (4, 20):
        problem = decay_problem(num_windows=num_windows)
        for name in ("pes", "nres"):
            estimator = make(name, problem, num_pairs=8)
            _, error = replicate(estimator, THETA, num_replicates=400, skip=num_windows, take=1)
            variances[name, num_windows] = float(jnp.sum(error**2))
    assert variances["nres", 20] < 0.75 * variances["pes", 20]
    growth = {name: variances[name, 20] / variances[name, 4] for name in ("pes", "nres")}
    assert growth["nres"] < 0.75 * growth["pes"]


def test_all_evolution_strategies_are_full_es_when_a_window_is_the_horizon(key):
    problem = decay_problem(window=HORIZON, num_windows=1)
    found = {}
    for name in EVOLUTION:
        estimator = make(name, problem, num_pairs=3)
        run = jax.jit(estimator.estimate)
        state, gradients = jax.jit(estimator.init)(key, THETA), []
        for step in range(2):  # the second would be credited to a ξ that was not reset
            gradient, state, _ = run(jax.random.fold_in(key, step), THETA, state, ())
            gradients.append(gradient)
        found[name] = np.stack(gradients)

    def by_hand(step_key, pair):
        k_perturbation, _ = jax.random.split(jax.random.fold_in(step_key, pair))
        noise = 0.1 * jax.random.normal(k_perturbation, THETA.shape)
        mean_loss = lambda theta: jnp.mean(decay_losses(theta, jnp.zeros(2), HORIZON)[1])
        return noise * (mean_loss(THETA + noise) - mean_loss(THETA - noise)) / (2 * 0.1**2)

    expected = [
        np.mean([by_hand(jax.random.fold_in(key, step), pair) for pair in range(3)], axis=0)
        for step in range(2)
    ]
    for name in EVOLUTION:
        np.testing.assert_allclose(found[name], expected, rtol=2e-4, err_msg=name)


@pytest.mark.parametrize("name", ["full_grad", "truncated_grad"])
def test_backprop_is_a_finite_difference_in_float64(name, key):
    with jax.enable_x64(True):
        theta = THETA.astype(jnp.float64)
        problem = decay_problem(
            window=HORIZON if name == "truncated_grad" else WINDOW,
            num_windows=1 if name == "truncated_grad" else NUM_WINDOWS,
        )
        gradient, _, _ = once(make(name, problem, num_members=1), key, theta)
        cost = lambda t: jnp.mean(decay_losses(t, jnp.zeros(2), HORIZON)[1])
        steps = 1e-6 * jnp.eye(2)
        difference = jnp.stack([(cost(theta + e) - cost(theta - e)) / 2e-6 for e in steps])
        np.testing.assert_allclose(gradient, difference, rtol=1e-8)


def test_backprop_through_real_updates_is_a_finite_difference_in_float64(key):
    with jax.enable_x64(True):
        lopt, theta = momentum_rate(), {"log_rate": jnp.float64(-2.0)}
        task = replace(
            bowl_task(), init=lambda k, i: {"x": jax.random.normal(k, (2,), jnp.float64)}
        )
        problem = inner_problem(task, lopt, horizon=8, window=4, objective=Objective("log"))
        gradient, _, _ = once(full_grad(problem, num_members=1), key, theta)
        k_run = jax.random.fold_in(key, 0)

        @jax.jit
        def cost(flat):
            return jnp.mean(unroll_run(problem, k_run, unravel(flat), ()).loss)

        flat, unravel = ravel_pytree(theta)
        steps = 1e-5 * jnp.eye(flat.size)
        difference = jnp.stack([(cost(flat + e) - cost(flat - e)) / 2e-5 for e in steps])
        np.testing.assert_allclose(ravel_pytree(gradient)[0], difference, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_backpropagation_keeps_the_state_of_each_step_and_little_more(key):
    """What an update computes is computed again on the way back."""
    task = replace(
        bowl_task(),
        init=lambda key, instance: {"x": jnp.ones(1000)},
        loss=lambda params, shift, instance: jnp.mean((params["x"] - shift[0]) ** 2),
    )
    lopt = adafac_mlp(hidden_size=2)
    theta = lopt.init(key)

    def temporary_bytes(window: int) -> int:
        problem = inner_problem(task, lopt, horizon=2 * window, window=window)
        estimator = truncated_grad(problem, num_members=1)
        state = jax.eval_shape(estimator.init, key, theta)
        with jax.numpy_rank_promotion("allow"):
            compiled = jax.jit(estimator.estimate).lower(key, theta, state, ()).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    params = task.init(key, {})
    kept = (params, lopt.transform(theta).init(params))
    per_step = sum(x.nbytes for x in jax.tree.leaves(kept))
    assert temporary_bytes(40) - temporary_bytes(20) < 1.2 * 20 * per_step


def test_linear_loss_has_no_smoothing_bias(key):
    def gradient(std, loss):
        estimator = truncated_es(decay_problem(loss=loss), num_pairs=4, std=std)
        return jax.jit(estimator.estimate)(key, THETA, jax.jit(estimator.init)(key, THETA), ())[0]

    linear = lambda losses, theta, state: jnp.full_like(losses, theta @ jnp.array([1.0, -2.0]))
    cubic = lambda losses, theta, state: jnp.full_like(losses, jnp.sum(theta**3))
    np.testing.assert_allclose(gradient(0.1, linear), gradient(10.0, linear), rtol=1e-4)
    assert np.all(np.abs(gradient(0.1, cubic) - gradient(10.0, cubic)) > 1.0)


def test_exclusive_credit_by_hand():
    """By hand: mean loss differences are (-0.1 - 0.3)/3 before the end and -0.4/3 after it."""
    delta = jnp.array([-0.1, -0.3, 9.0, -0.4])  # step 2 does not count
    done = jnp.array([False, True, False, False])
    mask = jnp.array([True, True, False, True])
    gradient, carried = pes_pair(delta, done, mask, jnp.array(0.02), jnp.array(0.01), 0.01)
    expected = (-0.4 / 3 * 0.03 + -0.4 / 3 * 0.01) / (2 * 0.01**2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(carried, 0.01)


@pytest.mark.parametrize(
    ("credit", "weights", "carried_expected"),
    [(credit_window, (2.0, 0.0), 0.0), (inclusive_credit, (0.5, 1.5), 0.01)],
)
def test_a_run_that_ends_with_the_window_leaves_nothing_behind(credit, weights, carried_expected):
    done = jnp.array([False, True])
    gradient, carried = pes_pair(
        jnp.array([1.0, 3.0]),
        done,
        ~jnp.zeros(2, bool),
        jnp.array(0.02),
        jnp.array(0.01),
        0.01,
        credit,
    )
    expected = (weights[0] * 0.03 + weights[1] * 0.01) / (2 * 0.01**2)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)
    np.testing.assert_allclose(carried, carried_expected)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("num_pairs", [0, -1])
def test_no_population(name, num_pairs):
    with pytest.raises(ValueError, match=r"`num_(pairs|members)` must be at least 1; got"):
        make(name, decay_problem(), num_pairs=num_pairs)


@pytest.mark.parametrize("name", [*EVOLUTION, "variance_weighted"])
@pytest.mark.parametrize("std", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_std(name, std):
    with pytest.raises(ValueError, match=f"`std` must be positive and finite; got {std}"):
        make(name, decay_problem(), std=std)


@pytest.mark.parametrize("name", ["full_grad", "truncated_grad", "variance_weighted"])
def test_backprop_needs_a_gradient(name):
    problem = replace(decay_problem(), is_differentiable=False)
    with pytest.raises(
        ValueError, match="would not give the gradient; got one that backpropagates"
    ):
        make(name, problem)


def test_a_variance_of_the_other_pairs_needs_two_of_them():
    expected = "`num_pairs` must be at least 3, to measure a variance without each; got 2. Try num"
    with pytest.raises(ValueError, match=expected):
        variance_weighted(decay_problem(), num_pairs=2, std=0.1)


@pytest.mark.parametrize("num_pairs", [4, 16])
def test_weights_add_no_bias_to_skewed_gradients(num_pairs):
    """The loss z θ₁ with a log-normal z, E[z] = e^½, in windows that are whole runs.

    Weights made of the sample that they weigh would give a rare large z a small one: the means
    were 25 % and 11 % too low with them.
    """
    one_step = decay_problem(window=1, num_windows=1)

    def unroll(key, theta, state, data):
        after, window = one_step.unroll(key, theta, state, data)
        return after, window._replace(loss=jnp.exp(jax.random.normal(key)) * theta[:1])

    estimator = variance_weighted(replace(one_step, unroll=unroll), num_pairs=num_pairs, std=0.1)
    truth = np.array([np.exp(0.5), 0.0])
    mean, error = replicate(estimator, THETA, num_replicates=40_000, skip=0, take=1)
    assert error[0] < 0.01 * truth[0]
    assert np.all(np.abs(mean - truth) < GATE * np.maximum(error, 1e-6))


def test_both_members_of_a_pair_are_backpropagated_through(key):
    """The loss is quadratic: the mean of both gradients is that at theta, whatever the noise."""
    estimator = variance_weighted(decay_problem(), num_pairs=8, std=0.5)
    gradient, _, _ = once(estimator, key)
    c = displacement(jnp.arange(1, WINDOW + 1))
    expected = [jnp.mean(c), THETA[1] * jnp.mean(c**2)]
    np.testing.assert_allclose(gradient, expected, rtol=1e-3)


def weighed(own, everyone, counts):
    """`weigh` for a theta of one number; `everyone` has a row a pair."""
    everyone = jnp.array(everyone, jnp.float32)[..., None]
    return float(weigh(jnp.array(own, jnp.float32)[:, None], everyone, jnp.array(counts))[0])


def test_a_pair_is_weighed_by_the_inverse_variances_of_the_others():
    """They are 4 and 1; what the pair itself has, and one that is left out, moves no weight."""
    everyone = [[100.0, -7.0], [1.0, 2.0], [5.0, 4.0], [np.nan, 9.0]]
    found = weighed([100.0, -7.0], everyone, [False, True, True, False])
    assert found == pytest.approx((100.0 / 4.0 - 7.0 / 1.0) / (1.0 / 4.0 + 1.0 / 1.0))


@pytest.mark.parametrize("explosion", [1e5, 1e20, 1e38, np.inf, np.nan])
def test_evolution_takes_over_where_gradients_explode(explosion):
    everyone = [[2.0, 1.0], [1.0, explosion], [3.0, 1.0]]
    assert weighed([2.0, 1.0], everyone, [False, True, True]) == pytest.approx(2.0, rel=1e-4)


@pytest.mark.parametrize(("own", "expected"), [([2.0, np.inf], 2.0), ([np.nan, 3.0], 3.0)])
def test_a_gradient_that_is_not_finite_leaves_its_pair_to_the_other_kind(own, expected):
    everyone = [own, [1.0, 2.0], [5.0, 4.0]]
    assert weighed(own, everyone, [False, True, True]) == expected


@pytest.mark.parametrize("both", [1.8e19, 1e20, np.inf, np.nan])
def test_evolution_where_both_variances_overflow(both):
    everyone = [[2.0, 3.0], [both, both], [-both, -both]]
    assert weighed([2.0, 3.0], everyone, [False, True, True]) == 2.0


def test_a_variance_that_float32_cannot_tell_is_not_zero():
    found = variance(jnp.array([1.0, 1.0 + 1e-7]), jnp.array([True, True]))
    assert float(found) == pytest.approx(1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "adafac_mlp",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("celo", "mlp_lopt", "nominal_mlp")),
    ],
)
def test_a_parameter_without_a_gradient_does_not_end_backpropagation(name, key):
    seen = jnp.array([1.0, 1.0, 1.0, 0.0])
    task = replace(
        bowl_task(),
        init=lambda key, instance: {"x": jax.random.normal(key, (4,))},
        loss=lambda params, shift, instance: jnp.mean((params["x"] * seen - shift[0]) ** 2),
    )
    lopt = DESIGNS[name]()
    theta = lopt.init(key)
    problem = inner_problem(task, lopt, horizon=8, window=4)
    with jax.numpy_rank_promotion("allow"):
        gradient, _, metrics = once(truncated_grad(problem, num_members=2), key, theta)
    assert metrics["valid"] == 1.0
    assert any(np.any(x != 0) for x in jax.tree.leaves(gradient))


@pytest.mark.parametrize("name", ["truncated_grad", "variance_weighted"])
def test_runs_that_are_not_finite_are_reset(name, key):
    """Those of the whole horizon break down; the others go on."""
    broken = lambda losses, theta, state: losses + jnp.where(state.horizon == HORIZON, jnp.nan, 0.0)
    estimator = make(name, decay_problem(loss=broken), num_pairs=16)
    before = jax.jit(estimator.init)(key, THETA)
    _, after, metrics = once(estimator, key, state=before)
    is_bad = np.asarray(before.members.horizon == HORIZON)
    assert 0 < np.sum(is_bad) < 16
    assert metrics["valid"] == 1.0 - np.mean(is_bad)
    expected = np.where(is_bad, 0, before.members.horizon)
    np.testing.assert_array_equal(after.members.horizon, expected)
    gradient, _, metrics = once(make(name, decay_problem(), num_pairs=16), key, state=after)
    assert metrics["valid"] == 1.0 and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", ["full_grad", "truncated_grad"])
def test_a_run_without_a_gradient_still_counts_in_the_meta_loss(name, key):
    """The square root of 0 has a loss and no gradient."""
    flat = lambda losses, theta, state: losses + jnp.sqrt(0.0 * theta[0]) + 1.0
    gradient, _, metrics = once(make(name, decay_problem(loss=flat), num_members=2), key)
    plain = once(make(name, decay_problem(), num_members=2), key)[2]
    np.testing.assert_array_equal(gradient, np.zeros(2))
    assert metrics["valid"] == 0
    np.testing.assert_allclose(metrics["meta_loss"], plain["meta_loss"] + 1.0, rtol=1e-5)


def test_unknown_shaping():
    with pytest.raises(ValueError, match="`shaping` must be one of none, sign"):
        pes(decay_problem(), num_pairs=2, std=0.1, shaping="rank")


@pytest.mark.parametrize("name", EVERY)
def test_a_misspelt_argument(name):
    with pytest.raises(TypeError, match="shapping"):
        make(name, decay_problem(), shapping="sign")


@pytest.mark.parametrize("name", EVERY)
def test_inner_steps_are_counted(name):
    steps = HORIZON if name.startswith("full") else WINDOW
    estimator = make(name, decay_problem(), num_pairs=6)
    assert isinstance(estimator, Estimator)
    runs = 6 if name.endswith("_grad") else 12
    assert estimator.steps == runs * steps
