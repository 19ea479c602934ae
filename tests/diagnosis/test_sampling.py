"""Estimators against what is known of them in closed form."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import (
    HORIZON,
    NUM_WINDOWS,
    THETA,
    WINDOW,
    decay_gradient,
    decay_losses,
    decay_problem,
    myopic_decay_gradient,
)

from l2o.diagnosis.sampling import diagnose
from l2o.diagnosis.summary import (
    BUDGET,
)
from l2o.estimators.estimator import Estimator
from l2o.estimators.nres import nres
from l2o.estimators.pes import pes
from l2o.estimators.truncated_es import truncated_es
from l2o.estimators.truncated_grad import truncated_grad
from l2o.runs.folder import RunError

STD = 0.1


NUM_REPLICATES = 1024


TRUTH = np.asarray(decay_gradient(THETA), np.float64)


def make_decay(horizon, window):
    return decay_problem(window, horizon // window)


@pytest.fixture(scope="module")
def by_name():
    pair = {"num_pairs": 1, "std": STD}
    found = diagnose(
        jax.random.key(0),
        make_decay,
        THETA,
        {
            "pes": partial(pes, **pair),
            "nres": partial(nres, **pair),
            "truncated_es": partial(truncated_es, **pair),
            "truncated_grad": partial(truncated_grad, num_members=1),
        },
        horizons=[HORIZON],
        windows=[WINDOW],
        std=STD,
        num_replicates=NUM_REPLICATES,
    )
    return found.references, {row.estimator: row for row in found.measurements}


def test_the_exact_gradient_is_the_reference(by_name):
    references, _ = by_name
    assert {r.kind: r.is_used for r in references} == {"exact": True, "smoothed": False}
    for reference in references:
        assert abs(reference.norm - np.linalg.norm(TRUTH)) < 4 * reference.error + 1e-4


@pytest.mark.parametrize("name", ["full_es", "full_grad", "pes", "nres"])
def test_unbiased_estimators_are_not_told_from_the_truth(by_name, name):
    row = by_name[1][name]
    assert not row.is_biased
    assert row.relative_bias < 4 * row.relative_bias_error + 1e-5
    assert row.cosine > 0.99
    assert abs(row.norm - np.linalg.norm(TRUTH)) < 4 * row.bias_error + 1e-4


@pytest.mark.parametrize("name", ["truncated_es", "truncated_grad"])
def test_short_sighted_estimators_show_the_bias_they_have(by_name, name):
    row = by_name[1][name]
    bias = np.linalg.norm(np.asarray(myopic_decay_gradient(THETA)) - TRUTH)
    assert row.is_biased
    assert abs(row.bias - bias) < 4 * row.bias_error + 1e-3
    assert row.relative_bias == pytest.approx(row.bias / np.linalg.norm(TRUTH), rel=1e-5)


def sensitivities():
    """Entry [k, i]: by how much window k's part of the mean loss moves with window i's theta.

    The loss is quadratic, so that antithetic differences see exactly this.
    """

    def parts(thetas):
        x, losses = jnp.zeros(2), []
        for theta in thetas:
            x, window_part = decay_losses(theta, x, WINDOW)
            losses.append(jnp.sum(window_part) / HORIZON)
        return jnp.stack(losses)

    return np.asarray(jax.jacobian(parts)(jnp.stack([THETA] * NUM_WINDOWS)), np.float64)


def test_variances_are_those_of_the_closed_form(by_name):
    """With unit normal z: an estimate is z (c·z) where c is all that the run has felt."""
    _, rows = by_name
    c, dims = sensitivities(), THETA.size
    np.testing.assert_allclose(np.sum(c, axis=(0, 1)), TRUTH, rtol=1e-5)
    runs = BUDGET / (2 * HORIZON)
    one_noise = (dims + 1) * np.sum(TRUTH**2) / runs

    def check(row, expected):
        """Within the width of the 95 % interval: four standard errors."""
        assert abs(row.variance - expected) < row.variance_high - row.variance_low < expected / 2

    def check_step(row, expected):
        width = row.step_variance_high - row.step_variance_low
        assert abs(row.step_variance - expected) < width < expected / 2

    for name in ("full_es", "nres"):  # over a whole run they are the same
        check(rows[name], one_noise)
    check_step(rows["full_es"], one_noise)

    # PES: Σ z_j (m_ji·z_i), where m_ji is what window i does to all windows from j on.
    m = np.array([[c[max(i, j) :, i].sum(0) for i in range(NUM_WINDOWS)] for j in range(4)])
    products = np.einsum("jid,ijd->ji", m, m)
    squares = np.einsum("jid,jid->ji", m, m)
    pes_noise = np.sum(dims * squares + products) / runs
    check(rows["pes"], pes_noise)

    # One window of NRES, at each stage as often as at any other.
    window_part = NUM_WINDOWS * np.sum(c, axis=1)
    square = (dims + 2) * np.mean(np.sum(window_part**2, axis=-1)) - np.sum(TRUTH**2)
    check_step(rows["nres"], square * 2 * WINDOW / BUDGET)
    # Backpropagation draws nothing here: windows differ by their stage alone.
    window_part = NUM_WINDOWS * np.diagonal(c).T
    square = np.mean(np.sum((window_part - window_part.mean(0)) ** 2, axis=-1))
    stages = rows["truncated_grad"]
    assert stages.variance < 1e-10
    assert stages.step_variance == pytest.approx(square * WINDOW / BUDGET, rel=0.01)
    for row in rows.values():
        assert row.variance_low <= row.variance <= row.variance_high
        assert row.step_variance_low <= row.step_variance <= row.step_variance_high


def test_backpropagation_without_noise_has_no_variance(by_name):
    assert by_name[1]["full_grad"].variance < 1e-10
    assert by_name[1]["full_grad"].mean_cosine == pytest.approx(1.0)


def drawn(problem, *, num_pairs=1, whole_runs=False):
    """An estimator that draws its estimates: compiles in no time."""

    def estimate(key, theta, state, data):
        return theta + jax.random.normal(key, theta.shape), state, {"valid": jnp.float32(1.0)}

    length = problem.horizon if whole_runs else problem.window
    return Estimator(lambda key, theta: (), estimate, steps=2 * num_pairs * length)


def draw(estimators, **options):
    cheap = estimators | dict.fromkeys(("full_es", "full_grad"), partial(drawn, whole_runs=True))
    return diagnose(jax.random.key(1), make_decay, THETA, cheap, std=STD, **options).measurements


@pytest.fixture(scope="module")
def drawn_rows():
    estimators = {"one": drawn, "eight": partial(drawn, num_pairs=8), "es_single": drawn}
    return draw(estimators, horizons=[20, 10], windows=[5, 2], num_replicates=256)


def test_windows_at_the_longest_horizon_and_horizons_at_the_shortest_window(drawn_rows):
    whole, windowed = ("full_es", "full_grad"), ("one", "eight", "es_single")
    assert [(row.estimator, row.horizon, row.window) for row in drawn_rows] == [
        *[(name, 10, None) for name in whole],
        *[(name, 10, 2) for name in windowed],
        *[(name, 20, None) for name in whole],
        *[(name, 20, window) for name in windowed for window in (2, 5)],
    ]


def test_every_estimator_gets_the_same_inner_steps(drawn_rows):
    for row in drawn_rows:
        assert row.inner_steps * row.num_replicates == 256 * 2 * row.horizon
        # Two dims of unit noise an estimate: the variance of the mean of those made.
        num_pairs = 8 if row.estimator == "eight" else 1
        steps = 2 * (row.window or row.horizon) * num_pairs
        if row.estimator in ("one", "eight"):
            assert row.variance == pytest.approx(2 * steps / BUDGET, rel=0.6)
        # One outer step of pairs at random stages is known from runs of a single pair.
        is_known = row.estimator not in ("eight", "es_single")
        assert np.isfinite(row.step_variance) == is_known


def test_an_estimator_draws_the_same_whoever_else_is_measured(drawn_rows):
    alone = draw({"one": drawn}, horizons=[20], windows=[5], num_replicates=256)
    norms = {(row.estimator, row.horizon, row.window): row.norm for row in drawn_rows}
    for row in alone:
        if row.window:
            assert row.norm == norms[row.estimator, row.horizon, row.window]
    assert len(set(norms.values())) == len(norms)


def test_an_estimator_that_does_not_fit_the_memory_is_named():
    def too_large(problem):
        def estimate(key, theta, state, data):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating")

        return dataclasses.replace(drawn(problem), estimate=estimate)

    message = r"huge at horizon 20 could not be measured \(RESOURCE_EXHAUSTED: Out of memory while"
    with pytest.raises(RunError, match=message):
        draw({"huge": too_large}, horizons=[20], windows=[5], num_replicates=8)
