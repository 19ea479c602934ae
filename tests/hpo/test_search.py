"""Trials within a budget, and their incumbents."""

import numpy as np
from hpo_search import STEPS, a_report

from l2o.evaluation.training import train_settings
from l2o.hpo.schedule import Hyperparameters, schedule, scheduled_sgd
from l2o.hpo.search import Search, incumbents, incumbents_after


def test_a_trial_ends_as_the_evaluation_does(trainer):
    trainer, starts = trainer
    rows = schedule(Hyperparameters(0.1, 0.1, end=0.1), STEPS)
    search = Search(trainer, 10 * STEPS)
    told = list(search.trial(rows))
    assert [step for step, _ in told] == trainer.reports == [2, 5, 7, 10, 12, 15, 17, 20]
    assert [report.budget_used for report in search.reports] == trainer.reports
    (curves,) = train_settings(
        trainer.task, scheduled_sgd, rows[None], starts, horizon=STEPS, probe_every=STEPS
    )
    np.testing.assert_allclose(told[-1][1], curves.final_loss[1], rtol=1e-4)
    _, loss = trainer.advance(trainer.begin(), rows, 0, STEPS)
    np.testing.assert_allclose(loss, told[-1][1], rtol=1e-4)


def test_a_trial_that_diverges_counts_as_the_cap(trainer):
    rows = np.full((STEPS, 2), [1e30, 0.0], np.float32)
    assert Search(trainer[0], STEPS).train(rows) == trainer[0].task.loss_cap


def test_the_incumbent_is_the_trial_whose_last_report_is_the_lowest():
    reports = [
        a_report(2, 2, 4.0, "a"),
        a_report(4, 4, 3.0, "a"),  # the same schedule
        a_report(6, 2, 1.0, "b"),
        a_report(8, 4, 5.0, "b"),  # got worse: a is the best again
        a_report(10, 2, 2.0, "c"),
        a_report(12, 4, 1.5, "c", rate=0.1),  # went on otherwise
        a_report(14, 4, 9.0, "d"),
    ]
    found = [(r.budget_used, r.trial, r.step, r.loss) for r in incumbents(reports)]
    assert found == [
        (2, "a", 2, 4.0),
        (4, "a", 4, 3.0),
        (6, "b", 2, 1.0),
        (8, "a", 4, 3.0),
        (10, "c", 2, 2.0),
        (12, "c", 4, 1.5),
    ]


def test_only_what_was_in_force_is_evaluated():
    reports = [a_report(3), a_report(5), a_report(8), a_report(9), a_report(30)]
    assert [r.budget_used for r in incumbents_after(reports, [2, 8, 16, 24])] == [8, 9]
