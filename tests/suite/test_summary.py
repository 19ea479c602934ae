"""What results add up to: by hand on curves of few steps."""

import json
import math

import numpy as np
import pytest
from suite.bowls import entry, result

from l2o.evaluation.report import strict
from l2o.suite.entrant import Entrant, find_entrants
from l2o.suite.summary import aggregate, figures, read_matrix, summarise

REFERENCE = result(entrant="adam", train=[16.0, 8.0, 4.0], valid=[16.0, 4.0, 8.0])


def test_steps_and_seconds_to_the_references_final_loss():
    own = result(train=[16.0, 4.0, 2.0], valid=[16.0, 8.0, 4.0], cost=4.0)
    train, valid = (figures(own, REFERENCE, 0.01, k) for k in ("train", "valid"))
    assert train.steps.tolist() == [1.0] * 8  # at 4 after one step, the reference after two
    assert train.speedup.tolist() == [2.0] * 8
    assert train.speedup_seconds.tolist() == [0.5] * 8
    assert train.ratio.tolist() == [0.5] * 8
    # The reference is at its final validation loss of 8 after half a step, on its way to 4; at
    # least one step counts.
    assert valid.steps.tolist() == [1.0] * 8
    assert valid.speedup.tolist() == [1.0] * 8


def test_a_target_that_is_never_reached_has_no_speed_up():
    found = figures(result(train=[16.0, 9.0, 5.0]), REFERENCE, 0.01, "train")
    assert np.isinf(found.steps).all() and found.speedup.tolist() == [0.0] * 8


def test_the_fastest_setting_counts_unless_it_never_gets_there():
    fast = result(train=[16.0, 8.0, 4.0], fastest=[16.0, 4.0, 4.0])
    late = result(train=[16.0, 8.0, 4.0], fastest=[16.0, 9.0, 9.0])
    assert figures(fast, REFERENCE, 0.01, "train").steps.tolist() == [1.0] * 8
    assert figures(late, REFERENCE, 0.01, "train").steps.tolist() == [2.0] * 8
    # It was not chosen by validation losses.
    found = figures(fast, result(entrant="adam", train=[16.0, 8.0, 4.0]), 0.01, "valid")
    assert found.steps.tolist() == [2.0] * 8


def test_losses_below_what_counts_as_solved_are_equal():
    reference = result(entrant="adam", train=[16.0, 1.0, 1e-9])
    own = result(train=[16.0, 1.0, 1e-3])
    found = figures(own, reference, 1.0, "train")
    assert found.ratio.tolist() == [1.0] * 8
    assert found.speedup.tolist() == [1.0] * 8
    assert found.score.tolist() == [1.0] * 8


def test_scores_are_logarithmic_and_zero_where_a_run_failed():
    assert figures(result(train=[16.0, 4.0]), REFERENCE, 1.0, "train").score.tolist() == [0.5] * 8
    for failed in (
        result(train=[16.0, 16.0]),
        result(train=[16.0, 50.0]),
        result(train=[16.0, 4.0], diverged=True),
    ):
        assert figures(failed, REFERENCE, 1.0, "train").score.tolist() == [0.0] * 8


def test_a_run_that_begins_below_what_counts_as_solved_has_a_score():
    assert figures(result(train=[0.5, 0.4]), REFERENCE, 1.0, "train").score.tolist() == [1.0] * 8


def learned(name, families) -> Entrant:
    (adam,) = find_entrants(["adam"])
    return Entrant(name, adam.baseline, families=families, is_learned=True)


def summary(results, suite=None):
    others = {r.entrant for r in results} - {"adam"}
    entrants = [learned(name, (f"{name}_family",)) for name in sorted(others)]
    suite = suite or [entry("one"), entry("two", kind="conv")]
    return summarise(suite, results, "adam", [*entrants, *find_entrants(["adam"])])


def test_aggregates_are_over_tasks_that_all_have_results_of():
    results = [
        result("one", "adam", train=[16.0, 8.0, 4.0]),
        result("two", "adam", train=[16.0, 8.0, 4.0]),
        result("one", "a", train=[16.0, 4.0, 2.0]),
    ]
    found = summary(results)
    assert [row["task"] for row in found["rows"]] == ["one", "two"]
    assert list(found["rows"][1]["results"]) == ["adam"]
    assert found["aggregated_tasks"] == ["one"]
    train = found["aggregates"]["a"]["train"]
    assert train["probability_of_improvement"]["value"] == 1.0
    assert train["median_speedup"] == 2.0
    expected = np.log(16.0 / 2.0) / np.log(16.0 / 0.02)
    assert train["interquartile_mean"]["value"] == pytest.approx(expected)
    assert found["profiles"]["steps"]["train"] == {
        "a": [1.0] * 41,
        "adam": [float(ratio >= 2.0) for ratio in found["profiles"]["ratios"]],
    }
    json.dumps(strict(found), allow_nan=False)


def test_a_run_that_diverged_has_solved_nothing_and_seconds_are_not_steps():
    results = [
        result("one", "adam", train=[16.0, 8.0, 4.0], cost=1.0),
        result("one", "a", train=[16.0, 4.0, 0.01], cost=4.0, diverged=True),
    ]
    train = summary(results)["aggregates"]["a"]["train"]
    assert (train["failed"], train["solved"]) == (1.0, 0.0)
    assert (train["median_speedup"], train["median_speedup_seconds"]) == (2.0, 0.5)


def test_intervals_of_the_probability_of_improvement_cover():
    """Scores that go together by seed: a resampled seed must not meet itself more than others."""
    rng = np.random.default_rng(0)
    low, high, lead = [], [], 0.3
    for _ in range(40):
        common = rng.normal(size=(8, 30))
        ours, theirs = (
            m + np.sqrt(0.9) * common + np.sqrt(0.1) * rng.normal(size=(8, 30)) for m in (lead, 0.0)
        )
        scores = [{"train": x, "valid": x} for x in (ours, theirs)]
        found = aggregate(*scores, lambda *_: np.ones((8, 30)), "a")
        interval = found["train"]["probability_of_improvement"]
        low, high = [*low, interval["low"]], [*high, interval["high"]]
    truth = 0.5 * (1 + math.erf(lead / 2))  # two seeds differ by a normal number of variance 2
    assert np.mean((np.array(low) <= truth) & (truth <= np.array(high))) >= 0.9


def test_failures_are_counted_beside_the_interquartile_mean():
    results = [
        *(result(task, "adam", train=[16.0, 4.0]) for task in ("one", "two")),
        result("one", "a", train=[16.0, 0.01]),
        result("two", "a", train=[16.0, 50.0], diverged=True),
    ]
    found = summary(results)
    train = found["aggregates"]["a"]["train"]
    assert (train["failed"], train["solved"]) == (0.5, 0.5)
    assert found["rows"][1]["results"]["a"]["diverged"] == 1.0


def test_what_was_trained_on_stands_beside_what_was_tested_on():
    results = [
        *(result(task, "adam", train=[16.0, 4.0]) for task in ("one", "two")),
        result("one", "a", train=[16.0, 4.0], valid=[16.0, 1.0]),
        result("two", "a", train=[16.0, 4.0], valid=[16.0, 16.0]),
    ]
    matrix = read_matrix(summary(results)["transfer"])
    assert matrix.trained_on == ("a_family",) and set(matrix.tested_on) == {"function", "conv"}
    by_kind = dict(zip(matrix.tested_on, matrix.estimate.value[0], strict=True))
    assert by_kind["conv"] == 0.0
    assert by_kind["function"] == pytest.approx(np.log(16.0) / np.log(16.0 / 0.02))


def test_there_is_no_transfer_without_a_learned_optimizer():
    found = summarise(
        [entry("one")], [result("one", "adam", train=[2.0, 1.0])], "adam", find_entrants(["adam"])
    )
    assert found["transfer"] is None
