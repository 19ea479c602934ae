"""Estimators against what is known of them in closed form, and `l2o diagnose` from end to end."""

import dataclasses
import json
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

from l2o import registry
from l2o.cli import main as cli
from l2o.diagnosis.report import png
from l2o.diagnosis.sampling import diagnose
from l2o.diagnosis.summary import (
    BUDGET,
    Diagnosis,
    Job,
    Measurement,
    Reference,
    Replicates,
    estimate_bias,
    make_sample,
    summarize,
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


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


TINY = (
    *("diagnose", "--task", "user_module:bowl", "--optimizer", "learnable_sgd", "--std", "0.1"),
    *("--horizon", "4", "--window", "2", "--num-replicates", "8"),
)


@pytest.mark.usefixtures("in_a_folder_of_its_own")
def test_the_command_writes_what_it_prints(tmp_path, capsys):
    options = ("--estimator", "pes", "--reference", "smoothed", "--out", "d")
    assert cli.main([*TINY, *options]) == 0
    printed = capsys.readouterr().out
    assert "pes, horizon 4, window 2: 8 replicates" in printed
    assert "horizon 4, smoothed gradient of norm" in printed
    content = json.loads((tmp_path / "d/diagnosis.json").read_text())
    assert content["config"]["estimator"] == ["pes"] and content["config"]["task"] == "bowl"
    assert content["budget"] == BUDGET and content["seconds"] > 0
    assert content["environment"]["num_devices"] == jax.device_count()
    assert [row["estimator"] for row in content["measurements"]] == ["full_es", "pes"]
    fields = lambda row: {k: np.nan if v is None and k != "window" else v for k, v in row.items()}
    found = Diagnosis(
        tuple(Reference(**fields(row)) for row in content["references"]),
        tuple(Measurement(**fields(row)) for row in content["measurements"]),
    )
    assert [dataclasses.asdict(row) for row in found.measurements] == content["measurements"]
    assert [dataclasses.asdict(row) for row in found.references] == content["references"]
    assert (tmp_path / "d/diagnosis.png").read_bytes() == png(found, "learnable_sgd on bowl")


MISTAKES = {
    "estimator": ("--estimator nrse", "--estimator must be a known name; got nrse. Try nres"),
    "task": ("--task digits_mlp_33", "--task must be a known name; got digits_mlp_33. Try digits"),
    "window": ("--window 3", "multiple of --window; got --horizon 4, --window 3. Try --horizon 6"),
    "whole": ("--window 4", "--horizon must be above --window; got --horizon 4, --window 4"),
    "nothing": ("--horizon", "--horizon must be at least one number; got none. Try --horizon 50"),
    "std": ("--std 0", "--std must be positive and finite; got 0.0"),
    "runs": (
        "--num-replicates 2",
        "--num-replicates must be at least 8; got 2. Try --num-replicates 256",
    ),
    "metric": (
        "--measure accuracy --objective mean --task digits_mlp --estimator truncated_grad",
        "--estimator must be an evolution strategy",
    ),
    "whole metric": (
        "--measure accuracy --objective mean --task digits_mlp --estimator full_grad",
        "--estimator must be an evolution strategy",
    ),
    "reference": (
        "--measure accuracy --objective mean --task digits_mlp --reference exact",
        "--reference must be smoothed for a metric",
    ),
    "measure": ("--measure speed", "--measure must be loss or a metric of task bowl"),
    "out": ("--out /dev/null/d", "--out must be a folder that can be written to; got /dev/null/d"),
    "theta": ("--theta nowhere", "nowhere"),
    "seed": ("--seed -1", "--seed must be between 0 and"),
}


@pytest.mark.usefixtures("in_a_folder_of_its_own")
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line(name, capsys, tmp_path):
    arguments, message = MISTAKES[name]
    assert cli.main([*TINY, *arguments.split()]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    assert message in error
    assert not list(tmp_path.iterdir())


def test_a_task_is_found_by_its_name_or_that_of_its_family():
    assert registry.training_task("digits_mlp").name == "digits_mlp_32_varied"
    assert registry.training_task("digits_mlp_128x128").name == "digits_mlp_128x128"
    assert registry.training_task("quadratic").name == "quadratic_10"
    assert registry.training_task("user_module:bowl").name == "bowl"
