"""Searches are repeated, kept and read; schedules are evaluated on other seeds."""

import dataclasses

import numpy as np
import pytest
from hpo_search import a_report
from rich.console import Console

from l2o.cli.compare_hpo import BUDGETS
from l2o.hpo import task_comparison
from l2o.hpo.engines import Engine
from l2o.hpo.schedule import SPACE, Hyperparameters, schedule
from l2o.hpo.task_comparison import load_reports, save_reports
from l2o.registry import tasks_to_evaluate
from l2o.rng import stream
from l2o.runs.folder import RunError


def test_reports_are_read_as_they_were_written(tmp_path):
    reports = [a_report(2, 2, 4.0, "a", rate=0.5), a_report(4, 4, 3.0, "b", rate=0.25)]
    save_reports(tmp_path / "x.npz", reports)
    for found, written in zip(load_reports(tmp_path / "x.npz"), reports, strict=True):
        assert found[:4] == written[:4]
        np.testing.assert_array_equal(found.schedule, written.schedule)


def test_what_is_damaged_is_named(tmp_path):
    path = tmp_path / "random_0.npz"
    save_reports(path, [a_report(4)])
    for content in (path.read_bytes()[:-30], b"", b"garbage"):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"random_0.npz is damaged.*Delete it, and go on with"):
            load_reports(path)


def test_every_repetition_of_a_search_has_a_seed_of_its_own(tmp_path):
    (task,) = tasks_to_evaluate(["user_module:bowl"])
    budget = dataclasses.replace(BUDGETS["small"], horizon=8, runs=2, searches=3)
    key, console = stream(5, "evaluation"), Console(quiet=True)
    found = task_comparison.search_all("random", task, key, budget, 5, tmp_path, console)
    low, high = np.log(SPACE["learning_rate"])
    first = [np.exp(np.random.default_rng(seed).uniform(low, high)) for seed in (5, 6, 7)]
    np.testing.assert_allclose([reports[0].schedule[0, 0] for reports in found], first, rtol=1e-5)


def test_an_engine_without_a_whole_trial_is_told_and_nothing_is_kept_of_it(tmp_path, monkeypatch):
    def search(found, seed, folder):
        rows = schedule(Hyperparameters(0.1, 0.1, end=1.0), found.trainer.horizon)
        next(found.trial(rows))

    monkeypatch.setattr(task_comparison, "ENGINES", {"random": Engine(search)})
    (task,) = tasks_to_evaluate(["user_module:bowl"])
    budget = dataclasses.replace(BUDGETS["small"], horizon=8, runs=2, searches=1)
    with pytest.raises(RunError, match=r"^random ended without a whole trial\. Leave it out by"):
        task_comparison.search_all(
            "random", task, stream(0, "evaluation"), budget, 0, tmp_path, Console(quiet=True)
        )
    assert not list(tmp_path.rglob("*.npz"))


def test_schedules_are_evaluated_in_chunks_each_once_and_in_order(monkeypatch):
    (task,) = tasks_to_evaluate(["user_module:bowl"])
    budget = dataclasses.replace(BUDGETS["small"], horizon=4, seeds=2)
    rates = (0.01, 0.03, 0.1, 0.2, 0.3)
    schedules = [schedule(Hyperparameters(rate, 1.0, end=1.0), 4) for rate in rates]
    ends = lambda: [
        curves.final_loss
        for curves in task_comparison.evaluate_schedules(
            schedules, task, stream(0, "evaluation"), budget
        )
    ]
    at_once = ends()
    monkeypatch.setattr(task_comparison, "SCHEDULES_AT_ONCE", 3)
    np.testing.assert_allclose(ends(), at_once, rtol=1e-5)
    assert len(np.unique(at_once)) == 10
