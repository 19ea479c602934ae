import numpy as np
import pytest

from l2o.evaluation.aggregates import interquartile_mean, probability_of_improvement
from l2o.evaluation.scores import loss_fractions, loss_ratios, loss_scores

NAN, INF = np.nan, np.inf


def test_a_loss_is_a_fraction_of_its_task_between_floor_and_cap():
    losses = np.array([[1.0, 1.0], [30.0, 30.0], [1e-9, 0.0], [-1.0, 0.03]])
    found = loss_fractions(losses, np.array([2.0, 20.0]), floor=np.array([0.01, 0.1]), cap=4.0)
    assert found.tolist() == [[0.5, 0.1], [4.0, 1.5], [0.01, 0.1], [0.01, 0.1]]


@pytest.mark.parametrize("failed", [NAN, INF, -INF, 8.5])
def test_a_failed_run_has_the_worst_score_and_is_not_dropped(failed):
    losses = np.array([[failed], [7.9], [1.0]])
    found = loss_scores(losses, 2.0, cap=4.0)
    assert found[0] == pytest.approx(-np.log(4.0) / np.log(1000.0))
    assert found[0] < found[1] < 0.0 < found[2]
    assert loss_scores(losses, 2.0)[:2].tolist() == [[0.0], [0.0]]


def test_scores_are_logarithmic_from_the_scale_to_the_floor():
    losses = 5.0 * 10.0 ** -np.arange(7.0)[:, None]
    assert loss_scores(losses, 5.0).ravel() == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1, 1])
    assert loss_scores(losses, 5.0, floor=1e-6).ravel() == pytest.approx(np.arange(7) / 6)


def test_losses_below_the_floor_are_equal_to_the_last_bit_whatever_the_scale():
    scale = np.random.default_rng(0).uniform(0.1, 9.0, (50, 3))
    tiny = scale * 10.0 ** -np.random.default_rng(1).uniform(3.01, 30.0, (50, 3))
    assert np.unique(loss_scores(tiny, scale)).tolist() == [1.0]
    assert np.unique(loss_ratios(tiny, tiny / 3.0, scale)).tolist() == [0.0]
    solved = loss_scores(tiny, scale)
    assert probability_of_improvement(solved, loss_scores(0.0 * tiny, scale)) == 0.5
    assert interquartile_mean(solved) == 1.0


def test_ratios_are_against_the_rival_on_the_same_seed():
    own, rival = np.array([[0.1, NAN], [1e-8, 0.5]]), np.array([[1.0, 0.01], [1e-5, NAN]])
    found = loss_ratios(own, rival, 1.0)
    assert found == pytest.approx(np.array([[1.0, -2.0], [0.0, np.log10(2.0)]]))
    assert loss_ratios(rival, own, 1.0) == pytest.approx(-found)
    assert loss_ratios(np.array([[NAN]]), np.array([[INF]]), 1.0) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=0.0), r"`scale` must be positive and finite; got 0\.0\. Try"),
        (dict(scale=[1.0, NAN]), r"`scale` must be positive and finite; got \[1\.0, nan\]"),
        (dict(scale=1.0, floor=0.0), r"`floor` must be between 0 and 1; got 0\.0\. Try"),
        (dict(scale=1.0, floor=1.0), r"`floor` must be between 0 and 1; got 1\.0\. Try"),
        (dict(scale=1.0, cap=0.5), r"`cap` must be at least 1 and finite; got 0\.5\. Try"),
        (dict(scale=1.0, cap=INF), r"`cap` must be at least 1 and finite; got inf\. Try"),
        (dict(scale=np.ones(1)[:, None, None]), r"`losses` must be of shape \(seeds, tasks\)"),
    ],
)
def test_what_gives_no_score_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss_scores(np.ones((5, 2)), **options)


def test_losses_of_other_seeds_or_axes_are_refused():
    with pytest.raises(ValueError, match=r"`losses` must be .*; got shapes \(3,\), \(\) and \(\)"):
        loss_scores(np.ones(3), 1.0)
    with pytest.raises(ValueError, match=r"`rival` must be .*; got shapes \(4, 2\) and \(5, 2\)"):
        loss_ratios(np.ones((5, 2)), np.ones((4, 2)), 1.0)
