import json
import re
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from l2o.evaluation import aggregates
from l2o.evaluation.aggregates import (
    interquartile_mean,
    mean,
    optimality_gap,
    percentile_interval,
    performance_profile,
    probability_of_improvement,
    resample,
    step_ratio_profile,
    stratified_bootstrap,
    task_median,
)

RLIABLE = json.loads((Path(__file__).parents[1] / "golden" / "rliable.json").read_text())
SCORES = {name: np.array(scores) for name, scores in RLIABLE["scores"].items()}
STATISTICS = {f.__name__: f for f in (interquartile_mean, mean, task_median, optimality_gap)}
THRESHOLDS = RLIABLE["thresholds"]
PROFILE = partial(performance_profile, thresholds=THRESHOLDS)
EXACT = dict(rtol=0.0, atol=1e-12)

WORST = -np.inf


def rliable_intervals():
    """Statistics, the scores they are of, and rliable's value and interval."""
    for name, found in RLIABLE["statistics"].items():
        for scores, case in found.items():
            yield STATISTICS[name], [SCORES[scores]], case
    for scores, case in RLIABLE["profiles"].items():
        yield PROFILE, [SCORES[scores]], case
    for case in RLIABLE["probability_of_improvement"]:
        yield probability_of_improvement, [SCORES[name] for name in case["pair"]], case


CASES = list(rliable_intervals())


def test_the_stored_scores_have_ties_and_as_many_tasks_but_not_seeds():
    assert [s.shape for s in SCORES.values()] == [(10, 7), (10, 7), (9, 7)]
    assert all(len(np.unique(s)) < s.size for s in SCORES.values())
    assert len(CASES) == 4 * 3 + 3 + 5


@pytest.mark.parametrize(("statistic", "samples", "case"), CASES)
def test_statistics_are_those_of_rliable(statistic, samples, case):
    np.testing.assert_allclose(statistic(*samples), case["value"], **EXACT)


@pytest.mark.parametrize(("statistic", "samples", "case"), CASES)
def test_intervals_of_the_same_resamples_are_those_of_rliable(statistic, samples, case):
    """Draw as rliable does, which goes on with one stream for one array after the other."""
    stream = np.random.RandomState(RLIABLE["seed"])
    draws = [
        [stream.choice(len(s), s.shape) for s in samples] for _ in range(RLIABLE["num_resamples"])
    ]
    indices = map(np.array, zip(*draws, strict=True))
    found = percentile_interval(statistic(*map(resample, samples, indices)), RLIABLE["confidence"])
    np.testing.assert_allclose(found, case["interval"], **EXACT)


@pytest.mark.parametrize(("statistic", "samples", "case"), CASES)
def test_intervals_of_other_resamples_are_those_of_rliable_but_for_chance(statistic, samples, case):
    found = stratified_bootstrap(
        samples, statistic, num_resamples=2000, confidence=RLIABLE["confidence"]
    )
    np.testing.assert_allclose(found.value, case["value"], **EXACT)
    low, high = np.array(case["interval"])
    std = (high - low) / (2 * 1.645)
    # The 5 % quantile of a normal sample of 2000 has a standard error of 0.047 std, two of them
    # differ by 0.067 std; discrete ones also by a step, of 1/70 for a fraction of the scores.
    allowed = 4 * 0.067 * std + (1 / 70 if statistic in (PROFILE, task_median) else 0.0) + 1e-12
    for ours, theirs in ((found.low, low), (found.high, high)):
        assert np.all(np.abs(ours - theirs) <= allowed)


def test_the_interquartile_mean_cuts_a_quarter_of_all_scores_rounded_down():
    assert interquartile_mean(np.array([[1.0, 100.0], [2.0, -100.0]])) == 1.5
    # Of 6 scores one is cut off at either end; tasks of one seed would all be kept.
    assert interquartile_mean(np.array([[9.0, 0.0, 1.0], [2.0, 3.0, 6.0]])) == 3.0
    assert interquartile_mean(np.array([[7.0]])) == 7.0


def test_the_other_statistics_of_known_scores():
    scores = np.array([[0.0, 1.0, 8.0], [2.0, 1.0, 0.0]])  # means of tasks: 1, 1, 4
    assert mean(scores) == 2.0
    assert task_median(scores) == 1.0
    assert task_median(scores.T) == 2.0  # means 3, 1
    assert optimality_gap(scores) == pytest.approx(1 / 3)
    assert optimality_gap(scores, goal=2.0) == pytest.approx(1.0)


def test_a_profile_counts_scores_above_a_threshold_and_not_at_it():
    scores = np.array([[0.0, 1.0], [1.0, 2.0], [WORST, np.inf]])
    found = performance_profile(scores, [-1.0, 0.0, 1.0, 1.5])
    assert found.tolist() == pytest.approx([5 / 6, 4 / 6, 2 / 6, 2 / 6])
    # The area from a threshold on is the mean of what scores exceed it by.
    grid = np.linspace(0.0, 3.0, 3001)
    area = np.mean(performance_profile(SCORES["a"], grid)[:-1]) * 3.0
    assert area == pytest.approx(np.mean(np.maximum(SCORES["a"], 0.0)), abs=2e-3)


def test_improvement_counts_pairs_of_seeds_of_a_task_and_ties_half():
    x, y = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0], [0.0, 5.0], [4.0, 6.0]])
    # Task 0: 1 beats 0; 3 beats 2 and 0: 3 of 6. Task 1: four ties of 6 count 2.
    assert probability_of_improvement(x, y) == pytest.approx((3 / 6 + 2 / 6) / 2)
    assert probability_of_improvement(y, x) == pytest.approx(1 - (3 / 6 + 2 / 6) / 2)
    assert probability_of_improvement(x, np.full((2, 2), WORST)) == 1.0
    assert probability_of_improvement(np.full((3, 2), WORST), np.full((2, 2), WORST)) == 0.5


def test_improvement_is_the_mann_whitney_statistic_of_each_task():
    x, y = SCORES["c"], SCORES["b"]
    found = scipy.stats.mannwhitneyu(x, y, axis=0).statistic / (len(x) * len(y))
    assert probability_of_improvement(x, y) == pytest.approx(np.mean(found), abs=1e-12)


def test_a_profile_of_steps_is_relative_to_who_is_first_and_counts_failures_for_none():
    inf = np.inf
    steps = np.array([[[10.0, 40.0], [inf, inf]], [[20.0, 10.0], [7.0, inf]]])
    found = step_ratio_profile(steps, [1.0, 1.99, 2.0, 4.0, 1e9, inf])
    # First: at once on (0, 0), at ratio 4 on (0, 1). Second: ratio 2 on (0, 0), then first twice.
    assert found[0].tolist() == [0.25, 0.25, 0.25, 0.5, 0.5, 0.5]
    assert found[1].tolist() == [0.5, 0.5, 0.75, 0.75, 0.75, 0.75]
    assert step_ratio_profile(steps[:, :, :1], [1.0]).tolist() == [[0.5], [0.5]]
    together = step_ratio_profile(np.stack([steps, steps[::-1]]), [1.0])
    assert together[:, :, 0].tolist() == [[0.25, 0.5], [0.5, 0.25]]


@pytest.mark.parametrize("statistic", [*STATISTICS.values(), PROFILE])
def test_statistics_take_many_resamples_at_once(statistic):
    many = np.random.default_rng(0).normal(size=(3, 2, 5, 4))
    one_by_one = [[statistic(scores) for scores in row] for row in many]
    np.testing.assert_allclose(statistic(many), one_by_one, **EXACT)
    pairs = probability_of_improvement(many, many[::-1, :, :3])
    assert pairs.shape == (3, 2)
    assert pairs[0, 1] == probability_of_improvement(many[0, 1], many[2, 1, :3])


def test_seeds_are_resampled_within_their_task_each_task_on_its_own():
    seeds, tasks = 8, 3
    scores = np.arange(seeds)[:, None] + 100.0 * np.arange(tasks)
    drawn = []

    def keep(resamples):
        drawn.append(resamples)
        return resamples.sum((-2, -1))

    stratified_bootstrap(scores, keep, num_resamples=3000)
    assert np.array_equal(drawn[0], scores)
    found = drawn[1]
    assert found.shape == (3000, seeds, tasks)
    assert np.array_equal(found // 100.0, np.broadcast_to(np.arange(tasks), found.shape))
    chosen = found % 100.0
    # Every seed is drawn equally often, at every place, and independently of other tasks.
    for seed in range(seeds):
        share = np.mean(chosen == seed, axis=0)
        assert np.all(np.abs(share - 1 / 8) < 4.5 * np.sqrt(7 / 64 / 3000))
    equal = np.mean(chosen[:, :, 0] == chosen[:, :, 1])
    assert abs(equal - 1 / 8) < 4 * np.sqrt(7 / 64 / (3000 * seeds))


def test_the_width_of_an_interval_is_that_of_the_strata():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9, 40)) * rng.exponential(size=40) + 50.0 * rng.normal(size=40)
    found = stratified_bootstrap(scores, mean, num_resamples=20_000)
    std = np.sqrt(np.sum(np.var(scores, axis=0) / 9)) / 40  # of a resample's mean, exactly
    assert found.value == pytest.approx(np.mean(scores))
    assert found.high - found.low == pytest.approx(2 * 1.96 * std, rel=0.04)
    # Resampled along tasks, which differ much, it would be tens of times as wide.
    across = stratified_bootstrap(scores.T, mean)
    assert across.high - across.low > 10 * (found.high - found.low)


@pytest.mark.parametrize(
    ("seeds", "tasks", "confidence"), [(8, 1, 0.95), (8, 6, 0.95), (16, 6, 0.8)]
)
def test_intervals_cover_as_often_as_they_say(seeds, tasks, confidence):
    """Bootstrap a thousand suites at once: as a thousand times as many tasks, averaged by suite."""
    suites = 1000
    levels = 10.0 * np.arange(tasks)
    scores = np.tile(levels, suites) + np.random.default_rng(1).normal(size=(seeds, suites * tasks))
    each = lambda s: s.reshape(*s.shape[:-1], suites, tasks).mean((-3, -1))
    found = stratified_bootstrap(scores, each, num_resamples=300, confidence=confidence)
    covered = np.mean((found.low <= np.mean(levels)) & (np.mean(levels) <= found.high))
    # A resample's variance lacks a factor of 1 - 1/n; that of all tasks is Student's.
    z = scipy.stats.norm.ppf((1 + confidence) / 2) * np.sqrt(1 - 1 / seeds)
    expected = 1 - 2 * scipy.stats.t.sf(z, tasks * (seeds - 1))
    assert abs(covered - expected) < 4 * np.sqrt(expected * (1 - expected) / suites)


def test_the_coverage_that_is_documented_is_that_of_the_formula():
    """And not that of Student's t interval, which would be 95 %."""
    z = lambda n: 1.959964 * np.sqrt(1 - 1 / n)
    many = [100 * (1 - 2 * scipy.stats.norm.sf(z(n))) for n in (8, 16)]
    one = [100 * (1 - 2 * scipy.stats.t.sf(z(n), n - 1)) for n in (5, 8, 16)]
    suite = (Path(__file__).parents[2] / "docs" / "suite.md").read_text()
    for text in (stratified_bootstrap.__doc__, suite):
        assert {f"{x:.1f} %" for x in (*many, *one)} <= set(re.findall(r"\d+\.\d %", text))


def test_pairs_are_resampled_alike_and_others_are_not():
    x = np.random.default_rng(0).normal(size=(8, 3))
    gain = lambda x, y: mean(x) - mean(y)
    assert stratified_bootstrap([x + 1.0, x], gain, paired=True) == pytest.approx((1.0, 1.0, 1.0))
    apart = stratified_bootstrap([x + 1.0, x], gain)
    alone = stratified_bootstrap(x, mean)
    # The variances of two independent means add up.
    ratio = (apart.high - apart.low) / (alone.high - alone.low)
    assert ratio == pytest.approx(np.sqrt(2), rel=0.1)


def test_intervals_are_a_function_of_the_seed_whatever_the_chunks(monkeypatch):
    samples = [SCORES["a"], SCORES["c"]]
    options = dict(num_resamples=50, seed=3)
    found = stratified_bootstrap(samples, probability_of_improvement, **options)
    monkeypatch.setattr(aggregates, "CHUNK", 7 * 133)
    assert stratified_bootstrap(samples, probability_of_improvement, **options) == found
    options["seed"] = 4
    assert stratified_bootstrap(samples, probability_of_improvement, **options) != found


def test_a_profile_has_a_band_and_a_statistic_of_several_optimizers_one_each():
    band = stratified_bootstrap(SCORES["a"], PROFILE)
    assert band.value.shape == band.low.shape == band.high.shape == (len(THRESHOLDS),)
    assert np.all((band.low <= band.value) & (band.value <= band.high))
    steps = np.exp(np.random.default_rng(0).normal(size=(2, 8, 5)))
    steps[0, :2] = np.inf
    profile = lambda *s: step_ratio_profile(np.stack(s, axis=-3), [1.0, 2.0, 4.0])
    found = stratified_bootstrap(list(steps), profile, paired=True, num_resamples=200)
    assert found.low.shape == (2, 3)
    np.testing.assert_allclose(np.sum(found.value[:, 0]), 1.0)  # one of the two is first


@pytest.mark.parametrize("convert", [jnp.asarray, np.ndarray.tolist])
def test_arrays_of_jax_and_nested_lists_are_scores_like_any_others(convert):
    x, y = SCORES["a"].astype(np.float32), SCORES["c"].astype(np.float32)
    options = dict(num_resamples=50)
    assert stratified_bootstrap(convert(x), mean, **options) == stratified_bootstrap(
        x, mean, **options
    )
    for several in ([convert(x), convert(y)], (convert(x), y)):
        found = stratified_bootstrap(several, probability_of_improvement, **options)
        assert found == stratified_bootstrap([x, y], probability_of_improvement, **options)


def test_infinite_estimates_have_an_interval_and_leave_finite_ones_as_they_are():
    scores = np.arange(8.0)[:, None] * np.ones(2)
    scores[:3, 0] = WORST
    medians = lambda s: np.median(s, axis=-2)
    found = stratified_bootstrap(scores, medians)
    assert found.value.tolist() == [3.5, 3.5]
    drawn = medians(resample(scores, draws(scores)))
    assert found.low[0] == WORST and found.high[0] == np.sort(drawn[:, 0])[1949]  # 97.5 % of 2000
    assert (found.low[1], found.high[1]) == tuple(percentile_interval(drawn[:, 1], 0.95))
    all_failed = stratified_bootstrap(np.full((8, 2), WORST), lambda s: s.max((-2, -1)))
    assert all_failed == (WORST, WORST, WORST)


def draws(scores):
    """Seeds that `stratified_bootstrap` draws of one sample with its defaults."""
    (stream,) = np.random.default_rng(0).spawn(1)
    return stream.integers(len(scores), size=(2000, *scores.shape))


@pytest.mark.parametrize("statistic", [*STATISTICS.values()])
@pytest.mark.parametrize("bad", [np.nan, WORST])
def test_statistics_refuse_a_failed_run_that_is_not_counted(statistic, bad):
    scores = np.array([[1.0, 2.0], [3.0, bad]])
    with pytest.raises(ValueError, match=r"`scores` must be finite; got 1 of 4 .* loss_scores"):
        statistic(scores)


def test_nan_is_refused_where_infinite_scores_are_not():
    scores = np.full((8, 2), np.nan)
    for call in (
        lambda: performance_profile(scores, [0.0]),
        lambda: probability_of_improvement(scores, np.zeros((8, 2))),
        lambda: probability_of_improvement(np.zeros((8, 2)), scores),
        lambda: stratified_bootstrap(scores, np.nanmean),
    ):
        with pytest.raises(ValueError, match=r"must be numbers; got 16 of 16 that are not"):
            call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean(np.zeros(3)), r"`scores` must be of shape \(seeds, tasks\); got \(3,\)"),
        (lambda: mean(np.zeros((3, 0))), r"`scores` must be of shape .*; got \(3, 0\)"),
        (
            lambda: probability_of_improvement(np.zeros((5, 2)), np.zeros((2, 5))),
            r"`y` must be of the same tasks as `x`, .*; got 5 and 2\. Try y\.T",
        ),
        (
            lambda: stratified_bootstrap(np.zeros((7, 9)), mean),
            r"`scores` must be .* at least 8 seeds, .*; got \[\(7, 9\)\]\. Try scores\.T",
        ),
        (
            lambda: stratified_bootstrap(np.zeros((2, 8, 9)), mean),
            r"`scores` must be of shape \(seeds, tasks\) .*; got \[\(2, 8, 9\)\].* list\(scores\)",
        ),
        (lambda: stratified_bootstrap([], mean), r"`scores` must be .*; got \[\]"),
        (
            lambda: stratified_bootstrap([np.zeros((8, 2)), np.zeros((9, 2))], mean, paired=True),
            r"to be paired; got shapes \[\(8, 2\), \(9, 2\)\]\. Try paired=False",
        ),
        (
            lambda: stratified_bootstrap(np.zeros((8, 2)), np.mean),
            r"`statistic` must reduce the last two axes, .*; got shape \(\) of 2000 resamples",
        ),
        (
            lambda: stratified_bootstrap(np.zeros((8, 2)), lambda s: s.mean(0)),
            r"`statistic` must reduce .*; got shape \(8, 2\) of 2000 resamples and \(2,\) of",
        ),
        (
            lambda: stratified_bootstrap(np.zeros((8, 2)), mean, confidence=95),
            r"`confidence` between 0 and 1; got 2000 and 95\. Try",
        ),
        (
            lambda: stratified_bootstrap(np.zeros((8, 2)), mean, num_resamples=0),
            r"`num_resamples` must be at least 1 .*; got 0 and 0\.95",
        ),
        (
            lambda: performance_profile(np.zeros((5, 2)), 0.5),
            r"`thresholds` must be numbers in a row; got shape \(\)",
        ),
        (
            lambda: step_ratio_profile(np.ones((5, 2)), [1.0]),
            r"`steps` must be of shape \(optimizers, seeds, tasks\); got \(5, 2\)\. Try np\.stack",
        ),
        (
            lambda: step_ratio_profile(np.ones((2, 0, 3)), [1.0]),
            r"`steps` .*; got \(2, 0, 3\)\. Try",
        ),
        (
            lambda: step_ratio_profile(np.ones((0, 2, 3)), [1.0]),
            r"`steps` .*; got \(0, 2, 3\)\. Try",
        ),
        (
            lambda: step_ratio_profile(np.full((2, 5, 2), np.nan), [1.0]),
            r"`steps` must be positive; got lowest nan\. Give np\.inf where",
        ),
        (
            lambda: step_ratio_profile(np.ones((2, 5, 2)), [0.5, 1.0]),
            r"`ratios` must be at least 1, .*; got 0\.5\. Try np\.geomspace",
        ),
    ],
)
def test_what_has_no_aggregate_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
