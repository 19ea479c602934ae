import numpy as np
import pytest

from l2o.evaluation.aggregates import (
    interquartile_mean,
    mean,
    performance_profile,
    stratified_bootstrap,
)
from l2o.evaluation.tables import aggregate_cells, markdown_table, transfer_cells
from l2o.evaluation.transfer import TransferResult, transfer_matrix

DRAW = np.random.default_rng(0)
MLPS, CONVS = (DRAW.normal(size=(8, tasks)) + tasks for tasks in (2, 3))


def rows():
    return [
        TransferResult("a", "mlps", "tests", MLPS + 1.0),
        TransferResult("a", "mlps", "convs", CONVS),
        TransferResult("a", "mlps", "mlps", MLPS),
        TransferResult("b", "convs", "convs", CONVS + 2.0),
    ]


def test_a_cell_is_the_aggregate_of_its_scores_and_its_interval():
    found = transfer_matrix(rows(), num_resamples=300, seed=2, confidence=0.9)
    assert found.trained_on == ("mlps", "convs")
    assert found.tested_on == ("mlps", "convs", "tests")
    options = dict(num_resamples=300, seed=2, confidence=0.9)
    for at, scores in (
        ((0, 0), MLPS),
        ((0, 1), CONVS),
        ((0, 2), MLPS + 1.0),
        ((1, 1), CONVS + 2.0),
    ):
        wanted = stratified_bootstrap(scores, interquartile_mean, **options)
        assert [float(x[at]) for x in found.estimate] == pytest.approx(wanted)
    assert found.num_optimizers.tolist() == [[1, 1, 1], [0, 1, 0]]
    for values in found.estimate:
        assert np.isnan(values).tolist() == [[False, False, False], [True, False, True]]


def test_runs_of_meta_training_on_one_family_are_averaged_and_resampled_alike():
    results = [("a", "mlps", "convs", CONVS), ("b", "mlps", "convs", 4.0 - CONVS)]
    found = transfer_matrix(results, mean)
    assert found.num_optimizers.tolist() == [[2]]
    # What one gains on a seed the other loses, so that nothing is left to chance.
    assert [x.item() for x in found.estimate] == pytest.approx([2.0, 2.0, 2.0])


def test_a_cell_is_of_the_statistic_that_was_asked_for():
    found = transfer_matrix(rows(), mean, num_resamples=10).estimate.value[0]
    assert found == pytest.approx([np.mean(MLPS), np.mean(CONVS), np.mean(MLPS) + 1.0])


def test_rows_that_make_no_table_are_refused():
    with pytest.raises(ValueError, match=r"`results` must have at least one row; got none\. Try"):
        transfer_matrix([])
    with pytest.raises(ValueError, match=r"got two of a trained on mlps, tested on tests\. Put"):
        transfer_matrix([*rows(), rows()[0]])


def test_scores_that_cannot_be_averaged_are_refused_by_the_name_of_their_run():
    message = (
        r"`results` trained on mlps, tested on mlps must .*; got shapes \(8, 2\) of a and \(9, 2\) "
        r"of c\. Evaluate both on the same seeds\."
    )
    with pytest.raises(ValueError, match=message):
        transfer_matrix([*rows(), ("c", "mlps", "mlps", np.zeros((9, 2)))])
    cell = r"`results` of c, trained on convs, tested on mlps: `scores` must "
    for scores, message in (
        (MLPS[:7], r".* at least 8 seeds.*got \[\(7, 2\)\]\. Try"),
        (np.full((8, 2), np.nan), r"be numbers; got 16 of 16 that are not\..* loss_scores"),
        (np.full((8, 2), np.inf), r"be finite; got 16 of 16 that are not\..* loss_scores"),
    ):
        with pytest.raises(ValueError, match=cell + message):
            transfer_matrix([*rows(), ("c", "convs", "mlps", scores)])


def test_a_statistic_must_be_one_number_as_a_point_of_a_profile_is():
    thresholds = [2.0, 3.0]
    with pytest.raises(ValueError, match=r"`statistic` must give one number .*; got shape \(2,\)"):
        transfer_matrix(rows(), lambda scores: performance_profile(scores, thresholds))
    point = lambda scores: performance_profile(scores, thresholds)[..., 0]
    found = transfer_matrix(rows(), point, num_resamples=10)
    assert found.estimate.value[0, 0] == np.mean(MLPS > 2.0)


def test_tables_show_values_with_intervals_and_what_was_not_evaluated():
    found = transfer_matrix(rows(), num_resamples=100)
    cells = transfer_cells(found)
    assert [row[0] for row in cells] == ["mlps", "convs"]
    value, low, high = (x[1, 1] for x in found.estimate)
    assert cells[1] == ["convs", "n/a", f"{value:.3g} [{low:.3g}, {high:.3g}]", "n/a"]
    text = markdown_table(["", *found.tested_on], cells)
    assert text.splitlines()[0] == "|  | mlps | convs | tests |"
    iqm = stratified_bootstrap(MLPS, mean, num_resamples=100)
    shown = f"{iqm.value:.3g} [{iqm.low:.3g}, {iqm.high:.3g}]"
    assert aggregate_cells({"adam": {"IQM": iqm, "again": iqm}}) == [["adam", shown, shown]]
