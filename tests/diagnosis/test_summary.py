"""Bias, variance and references from replicates that are drawn here."""

import dataclasses

import numpy as np
import pytest

from l2o.diagnosis.report import png
from l2o.diagnosis.summary import (
    Job,
    Replicates,
    estimate_bias,
    make_sample,
    summarize,
)


def make_replicates(gradients, valid=None):
    gradients = np.asarray(gradients, np.float64)
    valid = np.ones(len(gradients)) if valid is None else np.asarray(valid, np.float64)
    squares = np.sum(gradients**2, axis=-1)
    return Replicates(gradients, squares, valid, 20, seconds=0.1, compile_seconds=1.0)


def summarize_with(gradients, valid=None, *, exact=None):
    wide = np.random.default_rng(0).normal(size=(5 * 1024, 3))
    draws = wide[:2048]
    exact = 0.1 * draws + 1.0 if exact is None else exact
    runs = {
        Job("full_es", 10, None): make_replicates(wide + 1.0),
        Job("full_grad", 10, None): exact
        if isinstance(exact, Replicates)
        else make_replicates(exact),
        Job("mine", 10, 5): make_replicates(gradients, valid),
    }
    return summarize(runs, "auto")


def test_bias_has_the_size_and_the_level_it_should():
    rng = np.random.default_rng(1)
    shift = np.array([0.4, -0.4, 0.2])
    found = np.array(
        [
            estimate_bias(
                make_sample(s * rng.normal(size=(n, 3)) + m), make_sample(rng.normal(size=(512, 3)))
            )
            for n, s, m in [(256, 1.0, 0.0), (256, 3.0, 0.0), (8, 3.0, 0.0), (256, 0.1, shift)]
            for _ in range(500)
        ]
    ).reshape(4, 500, 3)
    for _, _, p_values in np.moveaxis(found[:3], -1, 1):
        assert 0.02 < np.mean(p_values < 0.05) < 0.08
        assert np.mean(p_values < 0.002) < 0.01  # with a normal tail, 0.03 for eight runs
    bias, error, p_values = found[3].T
    assert np.all(p_values < 1e-3)
    assert np.mean(bias) == pytest.approx(0.6, abs=0.01)
    assert np.mean(error) == pytest.approx(np.std(bias), rel=0.15)


def test_what_is_not_valid_is_left_out_and_counted():
    good = np.random.default_rng(2).normal(size=(64, 3)) + 1.0
    both = np.concatenate([good, np.zeros((64, 3))])
    row = summarize_with(both, np.repeat([1.0, 0.0], 64)).measurements[-1]
    all_good = summarize_with(good).measurements[-1]
    assert row.valid == 0.5 and row.num_replicates == 64
    assert row.norm == all_good.norm
    assert row.variance == pytest.approx(2 * all_good.variance)  # they cost inner steps, too
    assert row.step_variance == pytest.approx(2 * all_good.step_variance)
    nothing = summarize_with(both, np.zeros(128))
    row = nothing.measurements[-1]
    assert row.valid == 0 and row.num_replicates == 0
    assert np.isnan(row.variance) and np.isnan(row.bias) and not row.is_biased
    whole = dataclasses.replace(nothing, measurements=nothing.measurements[:2])
    for diagnosis in (nothing, whole):
        assert png(diagnosis, "little of mine").startswith(b"\x89PNG")


def test_an_exact_gradient_that_is_not_finite_is_no_reference():
    exact = np.ones((2048, 3))
    valid = np.ones(2048)
    valid[-1] = 0.0
    spoilt = summarize_with(exact, exact=make_replicates(exact, valid))
    assert [(r.kind, r.is_used) for r in spoilt.references] == [("smoothed", True)]
    (reference,) = spoilt.references
    assert (reference.num_replicates, reference.valid) == (4096, 1.0)
    noisy = summarize_with(exact, exact=100.0 * np.random.default_rng(3).normal(size=(2048, 3)))
    assert {r.kind: r.is_used for r in noisy.references} == {"smoothed": True, "exact": False}
