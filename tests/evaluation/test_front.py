"""Fronts: costs of runs, what is not dominated, hypervolumes with intervals."""

import dataclasses

import numpy as np
import pytest
from user_module import bowl

from l2o.evaluation.front import (
    check_objectives,
    costs,
    hypervolumes,
    not_dominated,
    preferences,
)
from l2o.evaluation.training import Curves
from l2o.rl.reward import LOG_FLOOR
from l2o.tasks.digits import digits_mlp

FRONT = np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])


def spread(points, scale=0.0, seeds=16, seed=0):
    """Costs over seeds whose means are these points."""
    noise = np.random.default_rng(seed).normal(size=(len(points), seeds, points.shape[1]))
    return points[:, None] + scale * (noise - noise.mean(axis=1, keepdims=True))


def test_a_hypervolume_is_the_share_of_the_box_that_is_dominated():
    volumes, gains = hypervolumes({"a": spread(FRONT)}, reference=(1.0, 1.0))
    assert volumes["a"] == pytest.approx((0.25, 0.25, 0.25)) and gains == {}
    # Units make no difference, and neither does what is dominated.
    scaled = np.concatenate([FRONT, [[0.9, 0.9]]]) * [1e3, 1e-3] + [7.0, -2.0]
    volumes, _ = hypervolumes({"a": spread(scaled)}, reference=(1007.0, -1.999))
    assert volumes["a"].value == pytest.approx(0.25)


def test_without_a_reference_the_worst_of_anybody_bounds_the_box():
    better, worse = FRONT - 0.5, FRONT + np.ones(2)
    volumes, gains = hypervolumes({"better": spread(better), "worse": spread(worse)})
    whole = 2.5**2
    assert volumes["worse"].value == pytest.approx(0.25 / whole)
    assert gains["worse"].value == pytest.approx(volumes["better"].value - volumes["worse"].value)


@pytest.mark.parametrize("reference", [(1.0, -0.5), (1.0, 0.0), (-1.0, -1.0)])
def test_what_is_nowhere_better_than_the_reference_is_worth_nothing(reference):
    volumes, gains = hypervolumes({"a": spread(FRONT), "b": spread(FRONT)}, reference)
    assert volumes["a"] == gains["b"] == (0.0, 0.0, 0.0)


def test_costs_that_are_not_finite_are_told():
    with pytest.raises(ValueError, match="must be finite; got others for b"):
        hypervolumes({"a": spread(FRONT), "b": spread(FRONT) * np.nan})
    with pytest.raises(ValueError, match="must be finite; got others for the reference"):
        hypervolumes({"a": spread(FRONT)}, (np.inf, 1.0))


def test_the_interval_of_a_gain_is_narrower_where_seeds_are_shared():
    base = spread(FRONT, scale=0.1)
    shifted = base + 0.05
    far = spread(FRONT - 1.0)  # so that the box does not cut the others' points
    both = {"a": base, "b": shifted, "far": far}
    volumes, gains = hypervolumes(both, reference=(2.0, 2.0))
    value, low, high = gains["b"]
    assert 0 < low <= value <= high
    own = volumes["b"].high - volumes["b"].low
    assert high - low < 0.3 * own


def test_what_dominates():
    points = np.array([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [3.0, 0.5], [1.0, 2.5]])
    assert not_dominated(points).tolist() == [True, True, False, True, False]


def test_preferences_sum_to_one_and_reach_every_corner():
    shares = preferences(3, 5)
    assert len(shares) == 15
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert np.eye(3).tolist() == [row.tolist() for row in shares if row.max() == 1.0][::-1]


def curves(fractions):
    ends = {"loss": np.array([0.5, 2.0]), "accuracy": np.array([0.75, 0.25])}
    return Curves(
        np.array([0, 3]),
        np.array([[2.0, 0.1], [2.0, 0.2]]),
        np.array([[1.0, 2.0, 3.0], [1.0, np.nan, 3.0]]),
        np.zeros(2, bool),
        {},
        ends,
        np.nan,
        fractions=fractions,
    )


def test_costs_are_what_they_say():
    task = digits_mlp().evaluation[0]
    task = dataclasses.replace(task, loss_cap=5.0)
    found = costs(
        curves(np.array([[1.0, 0.5, 0.0], [0.5, 0.5, 0.5]])),
        task,
        ("log_loss", "loss", "examples", "accuracy"),
        "test",
    )
    expected = [
        [np.log(0.5 + LOG_FLOOR), 2.0, 0.5, -0.75],
        [np.log(2.0 + LOG_FLOOR), 3.0, 0.5, -0.25],
    ]
    np.testing.assert_allclose(found, expected)
    train = costs(curves(np.empty((2, 0))), task, ("log_loss", "examples"), "train")
    np.testing.assert_allclose(train, [[np.log(0.1 + LOG_FLOOR), 1], [np.log(0.2 + LOG_FLOOR), 1]])


@pytest.mark.parametrize(
    ("objectives", "on", "message"),
    [
        (
            ("log_loss", "f1"),
            "test",
            "`objectives` must be log_loss, loss, examples or a metric of",
        ),
        (("log_loss", "accuracy"), "train", "got accuracy. Try log_loss, loss, examples."),
        (("log_loss",), "test", "`objectives` must be at least two that differ; got log_loss"),
        ((), "test", "`objectives` must be at least two that differ; got none"),
        (("loss", "loss"), "test", "`objectives` must be at least two that differ; got loss loss"),
    ],
)
def test_mistakes(objectives, on, message):
    with pytest.raises(ValueError, match=message):
        check_objectives(objectives, bowl() if callable(bowl) else bowl, on)
