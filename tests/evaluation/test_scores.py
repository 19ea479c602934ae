import re

import numpy as np
import pytest

from l2o.evaluation.aggregates import (
    interquartile_mean,
    performance_profile,
    probability_of_improvement,
)
from l2o.evaluation.scores import final_losses, log10_loss_ratios, loss_fractions, loss_scores

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
    assert np.unique(log10_loss_ratios(tiny, tiny / 3.0, scale)).tolist() == [0.0]
    solved = loss_scores(tiny, scale)
    assert probability_of_improvement(solved, loss_scores(0.0 * tiny, scale)) == 0.5
    assert interquartile_mean(solved) == 1.0


def test_ratios_are_against_the_rival_on_the_same_seed():
    own, rival = np.array([[0.1, NAN], [1e-8, 0.5]]), np.array([[1.0, 0.01], [1e-5, NAN]])
    found = log10_loss_ratios(own, rival, 1.0)
    assert found == pytest.approx(np.array([[1.0, -2.0], [0.0, np.log10(2.0)]]))
    assert log10_loss_ratios(rival, own, 1.0) == pytest.approx(-found)
    assert log10_loss_ratios(np.array([[NAN]]), np.array([[INF]]), 1.0) == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(scale=0.0), r"`scale` must be positive and finite; got 0\.0\. Try .*\[:, :1\]"),
        (dict(scale=[1.0, NAN]), r"`scale` must be positive and finite; got nan\. Try"),
        (dict(scale=1.0, floor=0.0), r"`floor` must be between 0 and 1; got 0\.0\. Try"),
        (dict(scale=1.0, floor=1.0), r"`floor` must be between 0 and 1; got 1\.0\. Try"),
        (dict(scale=1.0, cap=0.5), r"`cap` must be at least 1 and finite; got 0\.5\. Try"),
        (dict(scale=1.0, cap=INF), r"`cap` must be at least 1 and finite; got inf\. Try"),
        (dict(scale=1.0, cap=[1.0, 2.0]), r"`cap` must be one number; got shape \(2,\)\. Try"),
        (dict(scale=1.0, floor=np.full(5, 0.1)), r"`floor` must be .*; got shape \(5,\)\. Try"),
        (dict(scale=1.0, floor=np.full((5, 1), 0.1)), r"`floor` must be .*; got shape \(5, 1\)"),
    ],
)
def test_what_gives_no_score_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loss_scores(np.ones((5, 2)), **options)


@pytest.mark.parametrize(
    ("losses", "scale", "hint"),
    [
        ((8, 8), (8,), r"scale\[None\] if it is one a task"),
        ((8, 1), (8,), r"scale\[:, None\]"),
        ((8, 5), (8,), r"losses\.T if"),
        ((8, 5), (5, 8), r"losses\.T if"),
        ((8, 5), (8, 1), r"Curves\.probe_loss\[:, :1\] of each task, joined along axis 1"),
        ((8, 5), (1,), r"Curves\.probe_loss"),
        ((8, 5), (1, 8, 5), r"Curves\.probe_loss"),
    ],
)
def test_scales_that_may_be_of_seeds_are_refused(losses, scale, hint):
    shapes = (
        rf"shape \(1, {losses[1]}\), .* shape \(8, {losses[1]}\); got shape {re.escape(str(scale))}"
    )
    with pytest.raises(ValueError, match=rf"`scale` must be .*{shapes}\. Try {hint}"):
        loss_scores(np.ones(losses), np.ones(scale))


def test_scales_are_one_a_task_or_one_a_run():
    losses, tasks = np.full((4, 4), 0.1), np.array([0.1, 1.0, 10.0, 100.0])
    wanted = np.tile([0.0, 1 / 3, 2 / 3, 1.0], (4, 1))
    assert loss_scores(losses, tasks[None]) == pytest.approx(wanted)
    assert loss_scores(losses[:3], tasks) == pytest.approx(wanted[:3])
    runs = np.broadcast_to(tasks[:, None], (4, 4))
    assert loss_scores(losses, runs) == pytest.approx(wanted.T)
    assert loss_scores(losses[:, :1], tasks[:, None]) == pytest.approx(wanted.T[:, :1])
    assert loss_scores(losses[:1, :1], [1.0]) == pytest.approx(1 / 3)


def test_failures_that_an_interquartile_mean_does_not_see_are_in_the_profile():
    losses = np.full((20, 5), 1e-5)
    losses[:19, 0] = NAN
    scores = loss_scores(losses, 1.0)
    assert interquartile_mean(scores) == 1.0
    assert 1 - performance_profile(scores, [0.0]) == pytest.approx(0.19)


def row(**losses):
    learned, *others = losses.items()
    entries = [{"name": name, "final_loss_by_seed": found} for name, found in others]
    return {
        "learned_final_loss_by_seed": learned[1],
        "controls": [e for e in entries if e["name"] == "untrained"],
        "baselines": [e for e in entries if e["name"] != "untrained"],
    }


def test_final_losses_are_those_of_entrants_that_every_row_has():
    first = row(learned=[1.0, 2.0, 3.0], adam=[4.0, 5.0, 6.0], untrained=[7.0, 8.0, 9.0])
    second = row(learned=[0.1, None, 0.3], untrained=[0.7, 0.8, 0.9], muon=[0.0, 0.0, 0.0])
    found = final_losses([first, second])
    assert list(found) == ["learned", "untrained"]
    np.testing.assert_array_equal(found["learned"], [[1.0, 0.1], [2.0, NAN], [3.0, 0.3]])
    assert found["untrained"].tolist() == [[7.0, 0.7], [8.0, 0.8], [9.0, 0.9]]
    assert list(final_losses([first])) == ["learned", "untrained", "adam"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"`comparisons` must be at least one row, .*; got no seeds"),
        ([row(learned=[1.0]), row(learned=[1.0, 2.0])], r"`comparisons` .*; got 1 and 2 seeds"),
        (
            [{"task": "digits"}],
            r"`comparisons` must be rows of a report\.json; .* losses by seed\. Try",
        ),
        ({"comparisons": []}, r"`comparisons` .* Try read_report\(folder\)\[\"comparisons\"\]"),
    ],
)
def test_what_are_no_rows_of_one_report_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        final_losses(rows)


def test_losses_of_other_seeds_or_axes_are_refused():
    with pytest.raises(ValueError, match=r"`losses` must be .*; got \(3,\)\. Try losses\[:, None"):
        loss_scores(np.ones(3), 1.0)
    with pytest.raises(ValueError, match=r"`rival` must be .*; got shapes \(4, 2\) and \(5, 2\)"):
        log10_loss_ratios(np.ones((5, 2)), np.ones((4, 2)), 1.0)
