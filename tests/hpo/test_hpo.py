"""Engines search within their budget; what they find and what it cost is reported as it is."""

import dataclasses
import fcntl
import itertools
import json
import math
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

from l2o import release
from l2o.cli import compare_hpo as command
from l2o.cli.compare_hpo import BUDGETS, CompareHPO, recorded_engines
from l2o.cli.hpo_policies import WAYS, settings_of
from l2o.cli.main import main
from l2o.cli.meta_train import meta_trained
from l2o.cli.methods import NRES
from l2o.evaluation.evaluate import draw_starts, train_settings
from l2o.hpo import engines, one_task
from l2o.hpo.engines import ENGINES, Engine
from l2o.hpo.one_task import load_reports, save_reports
from l2o.hpo.recipe import SPACE, Hyperparameters, follow, recipe
from l2o.hpo.report import TaskResult, crossed, crossing_table, loss_table
from l2o.hpo.search import Report, Search, Trainer, in_force, incumbents
from l2o.hpo.summary import (
    Bound,
    Crossing,
    crossing,
    engine_result,
    losses_after,
    policy_result,
    read_off,
)
from l2o.hpo.trained_policy import Meta
from l2o.optimizers.learnable import learnable_sgdm
from l2o.registry import tasks_to_evaluate
from l2o.rng import stream
from l2o.runs.folder import RunError

STEPS = 20
RUNS = 16
IN_PROCESS = [name for name in ENGINES if name != "ray_pbt"]


@pytest.fixture(scope="module")
def trainer():
    (task,) = tasks_to_evaluate(["digits_mlp_32"])
    starts = draw_starts(stream(3, "evaluation"), task, 2)
    return Trainer(task, jax.tree.map(lambda x: x[1], starts), STEPS), starts


def searched(name, trainer, seed, folder):
    search = Search(trainer, RUNS * STEPS)
    ENGINES[name].search(search, seed, folder)
    return search


def test_a_recipe_is_a_cosine_between_its_ends():
    rows = recipe(Hyperparameters(0.2, 0.1, end=0.25), 50)
    schedule = optax.cosine_decay_schedule(0.2, 50, alpha=0.25)
    np.testing.assert_allclose(rows[:, 0], [schedule(i) for i in range(50)], rtol=1e-5)
    np.testing.assert_allclose(rows[:, 1], 0.9)
    np.testing.assert_allclose(recipe(Hyperparameters(0.2, 0.1, end=1.0), 50)[:, 0], 0.2)


def test_following_a_recipe_is_sgd_with_its_schedule():
    rows = recipe(Hyperparameters(0.2, 0.1, end=0.25), 9)
    schedule = optax.cosine_decay_schedule(0.2, 9, alpha=0.25)
    ours, theirs = follow(jax.numpy.asarray(rows)), optax.sgd(schedule, momentum=0.9)
    params = {"w": jax.numpy.array([1.0, -2.0])}
    a, b = (params, ours.init(params)), (params, theirs.init(params))
    for _ in range(9):
        a, b = (
            (optax.apply_updates(p, u), s)
            for tx, (p, state) in ((ours, a), (theirs, b))
            for u, s in [tx.update(jax.tree.map(lambda x: x**3, p), state, p)]
        )
    np.testing.assert_allclose(a[0]["w"], b[0]["w"], rtol=1e-6)


def test_a_trial_ends_as_the_evaluation_does(trainer):
    trainer, starts = trainer
    rows = recipe(Hyperparameters(0.1, 0.1, end=0.1), STEPS)
    search = Search(trainer, 10 * STEPS)
    told = list(search.trial(rows))
    assert [step for step, _ in told] == trainer.reports == [2, 5, 7, 10, 12, 15, 17, 20]
    assert [report.spent for report in search.reports] == trainer.reports
    (curves,) = train_settings(
        trainer.task, follow, rows[None], starts, num_steps=STEPS, probe_every=STEPS
    )
    np.testing.assert_allclose(told[-1][1], curves.final_loss[1], rtol=1e-4)
    _, loss = trainer.advance(trainer.begin(), rows, 0, STEPS)
    np.testing.assert_allclose(loss, told[-1][1], rtol=1e-4)


def test_a_trial_that_diverges_counts_as_the_cap(trainer):
    rows = np.full((STEPS, 2), [1e30, 0.0], np.float32)
    assert Search(trainer[0], STEPS).train(rows) == trainer[0].task.loss_cap


@pytest.mark.parametrize("name", IN_PROCESS)
def test_an_engine_searches_its_space_within_its_budget(name, trainer, tmp_path):
    search = searched(name, trainer[0], 1, tmp_path)
    assert search.budget - STEPS < search.spent <= search.budget
    low, high = np.array(list(SPACE.values())).T
    for report in search.reports:
        assert np.all(report.recipe[:, 0] <= high[0] * 1.0001)
        assert low[0] * 0.9999 <= report.recipe[0, 0]
        assert np.all((report.recipe[:, 1] >= 0) & (report.recipe[:, 1] <= 0.9901))
    last = incumbents(search.reports)[-1]
    whole = [report.loss for report in search.reports if report.step == STEPS]
    assert last.step == STEPS and last.loss == min(whole) < whole[0]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_search_is_a_function_of_its_seed(name, trainer, tmp_path):
    first, again = (searched(name, trainer[0], 1, tmp_path) for _ in range(2))
    other = searched(name, trainer[0], 2, tmp_path)
    losses = [[report.loss for report in search.reports] for search in (first, again, other)]
    assert losses[0] == losses[1]
    assert (losses[0] == losses[2]) == (name == "cosine")  # nothing of which is random


def test_a_person_begins_in_the_middle_of_the_grid(trainer, tmp_path):
    reports = searched("cosine", trainer[0], 0, tmp_path).reports
    whole = [report.recipe for report in reports if report.step == STEPS]
    points = [(float(f"{rows[0, 0]:.4g}"), float(f"{rows[0, 1]:.4g}")) for rows in whole]
    grid = [10.0 ** (k / 2) for k in (-4, -3, -5, -2, -6, -1, -7, 0, -8)]
    np.testing.assert_allclose([rate for rate, _ in points[:9]], grid, rtol=1e-3)
    assert len({rate for rate, _ in points[9:15]}) < 6 and len(set(points)) == RUNS
    np.testing.assert_allclose(points[0][1], 0.9)
    np.testing.assert_allclose(reports[7].recipe[-1, 0], 0.0, atol=1e-4)


def test_tpe_keeps_a_journal_and_stops_bad_trials_early(trainer, tmp_path):
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    search = searched("optuna_tpe", trainer[0], 1, tmp_path)
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "optuna_tpe_1.journal")))
    (summary,) = optuna.get_all_study_summaries(storage)
    study = optuna.load_study(study_name=summary.study_name, storage=storage)
    states = [trial.state for trial in study.trials]
    assert len(study.trials) > RUNS and optuna.trial.TrialState.PRUNED in states
    assert study.best_value == incumbents(search.reports)[-1].loss


@pytest.mark.parametrize("name", ["optuna_tpe", "optuna_cmaes"])
def test_a_study_begins_anew_where_one_was_killed(name, trainer, tmp_path, monkeypatch):
    """With what it had written, and a lock that nobody will release."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    first = searched(name, trainer[0], 1, tmp_path)
    journal = tmp_path / f"{name}_1.journal"
    lock = tmp_path / f"{name}_1.journal.lock"
    lock.symlink_to(journal)  # as Optuna locks
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("waits for the lock"))
    again = searched(name, trainer[0], 1, tmp_path)
    assert [report.loss for report in again.reports] == [report.loss for report in first.reports]
    storage = JournalStorage(JournalFileBackend(str(journal)))
    assert len(optuna.get_all_study_summaries(storage)) == 1


class Bowl(Search):
    """A search on a loss that is lowest at a rate of 0.01 and a friction of 0.5."""

    def train(self, rows):
        loss = float(np.abs(np.log(point_of(rows)) - np.log([0.01, 0.5])).sum())
        self.record(str(len(self.reports)), len(rows), len(rows), loss, rows)
        return loss


def point_of(rows):
    """The first rate of a recipe and its friction."""
    return rows[0] * [1.0, -1.0] + [0.0, 1.0]


def test_a_person_then_tries_what_is_ever_closer_to_the_best(tmp_path):
    """Rate and friction, one at a time, by a factor of 2, then its root and the root of that."""
    search = Bowl(Trainer(None, None, 4), 4 * 26)
    ENGINES["cosine"].search(search, 0, tmp_path)
    points = [point_of(report.recipe) for report in search.reports]
    closer = [
        *((0.005, 0.5), (0.02, 0.5), (0.01, 0.25)),  # a friction of 1 was tried before
        *((0.0070711, 0.5), (0.0141421, 0.5), (0.01, 0.353553), (0.01, 0.707107)),
        *((0.0084090, 0.5), (0.0118921, 0.5), (0.01, 0.420448), (0.01, 0.594604)),
    ]
    np.testing.assert_allclose(points[15:], closer, rtol=1e-5)


def a_report(spent, step=4, loss=0.0, trial="a", rate=0.0):
    return Report(spent, trial, step, loss, np.full((4, 2), rate))


def test_the_incumbent_is_the_trial_whose_last_report_is_the_lowest():
    reports = [
        a_report(2, 2, 4.0, "a"),
        a_report(4, 4, 3.0, "a"),  # the same recipe
        a_report(6, 2, 1.0, "b"),
        a_report(8, 4, 5.0, "b"),  # got worse: a is the best again
        a_report(10, 2, 2.0, "c"),
        a_report(12, 4, 1.5, "c", rate=0.1),  # went on otherwise
        a_report(14, 4, 9.0, "d"),
    ]
    found = [(r.spent, r.trial, r.step, r.loss) for r in incumbents(reports)]
    assert found == [
        (2, "a", 2, 4.0),
        (4, "a", 4, 3.0),
        (6, "b", 2, 1.0),
        (8, "a", 4, 3.0),
        (10, "c", 2, 2.0),
        (12, "c", 4, 1.5),
    ]


class FakeCurves:
    """What of `Curves` is read."""

    def __init__(self, *losses):
        self.final_loss = np.array(losses)
        self.diverged = self.final_loss > 5
        self.test = {"loss": self.final_loss, "accuracy": self.final_loss / 10}


def test_only_what_was_in_force_is_evaluated():
    reports = [a_report(3), a_report(5), a_report(8), a_report(9), a_report(30)]
    assert [r.spent for r in in_force(reports, [2, 8, 16, 24])] == [8, 9]


def test_reports_are_read_as_they_were_written(tmp_path):
    reports = [a_report(2, 2, 4.0, "a", rate=0.5), a_report(4, 4, 3.0, "b", rate=0.25)]
    save_reports(tmp_path / "x.npz", reports)
    for found, written in zip(load_reports(tmp_path / "x.npz"), reports, strict=True):
        assert found[:4] == written[:4]
        np.testing.assert_array_equal(found.recipe, written.recipe)


def test_curves_over_what_was_spent_are_medians_of_medians():
    a = [
        (a_report(4), FakeCurves(3.0, 5.0, 4.0)),
        (a_report(12), FakeCurves(1.0, 1.0, 0.0)),
    ]
    b = [(a_report(8), FakeCurves(2.0, 9.0, 5.5))]
    assert np.all(np.isnan(losses_after(b, 4)))
    np.testing.assert_array_equal(losses_after(a, 8), [3.0, 5.0, 4.0])
    np.testing.assert_array_equal(losses_after(a, 12), [1.0, 1.0, 0.0])
    result = engine_result(read_off("e", [a, b], [4, 8, 12]))
    np.testing.assert_allclose(result.median, [np.nan, 4.75, 3.25])
    np.testing.assert_allclose(result.low, [np.nan, 4.375, 2.125])
    np.testing.assert_allclose(result.high, [np.nan, 5.125, 4.375])
    assert result.final_loss.median == 3.25 and result.diverged == pytest.approx(2 / 6)
    assert result.final_loss.low == 0.0 and result.final_loss.high == 9.0  # of searches and seeds
    mean = np.mean([1.0, 1.0, 0.0, 2.0, 9.0, 5.5])
    assert result.test == pytest.approx({"loss": mean, "accuracy": mean / 10})


def test_lines_cross_where_the_engine_stays_as_good():
    """A run has 4 steps and meta-training 100: the engine pays what it took, the policy 4."""
    losses = (4.0, 1.5, 3.0, 1.0)
    runs = [(a_report(4 * i + 4), FakeCurves(loss)) for i, loss in enumerate(losses)]
    engine = read_off("e", [runs], [4, 8, 12, 16])
    at = lambda loss: crossing(np.array([loss]), 100, 4, engine).middle
    assert at(4.5) == Bound(4, None)  # its first run is as good: nothing is saved
    assert at(3.5) == Bound(8, 25)
    assert at(2.0) == Bound(16, 9)  # after 8 steps, too, but not for long
    assert at(0.5) == Bound(None, 9)  # an upper bound
    shown = [crossed(crossing(np.array([x]), 100, 4, engine)) for x in (4.5, 3.5, 0.5)]
    assert shown == ["never\n[never, never]", "25\n[25, 25]", "≤ 9\n[≤ 9, ≤ 9]"]


def test_crossings_have_intervals_over_searches():
    """Two searches reach the policy's loss after 8 and after 12 steps; all draws of two of them."""
    slow = [(a_report(4), FakeCurves(4.0)), (a_report(12), FakeCurves(1.0))]
    fast = [(a_report(4), FakeCurves(4.0)), (a_report(8), FakeCurves(1.0))]
    found = crossing(np.array([2.0]), 100, 4, read_off("e", [slow, fast], [4, 8, 12]))
    assert found == Crossing("e", Bound(12, 13), Bound(8, 25), Bound(12, 13))
    assert crossed(found) == "13\n[13, 25]"


def test_a_trial_that_is_not_whole_yet_is_still_to_be_trained():
    """The best trial of one of two searches is 3, then 1 of 4 steps short of its end."""
    curves = [FakeCurves(4.0), FakeCurves(1.0), FakeCurves(1.0)]
    slow = zip([a_report(4, 1), a_report(8, 3), a_report(12)], curves, strict=True)
    fast = zip([a_report(4), a_report(8), a_report(12)], curves, strict=True)
    engine = read_off("e", [list(slow), list(fast)], [2, 4, 8, 12])
    np.testing.assert_array_equal(engine.rest, [[4, 3, 1, 0], [4, 0, 0, 0]])
    at = lambda loss: crossing(np.array([loss]), 180, 4, engine).middle
    assert at(5.0) == Bound(4, 120)  # 4 + 1.5 steps less the policy's 4
    assert at(2.0) == Bound(8, 40)
    assert at(0.5) == Bound(None, 23)


def test_what_is_damaged_is_named(tmp_path):
    path = tmp_path / "random_0.npz"
    save_reports(path, [a_report(4)])
    for content in (path.read_bytes()[:-30], b"", b"garbage"):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"random_0.npz is damaged.*Delete it, and go on with"):
            load_reports(path)
    for content in ("[]", '{"engines": null}', '{"engines": 3}', '{"engines": ["no"]}', "{"):
        (tmp_path / "config.json").write_text(content)
        assert recorded_engines(CompareHPO(out=str(tmp_path), resume=True)) == []


def test_a_policy_is_seen_only_on_its_own_tasks_and_free_before_meta_training():
    engine = read_off("e", [[(a_report(4), FakeCurves(4.0))]], [4, 8])
    policy = Meta("p", None, None, 100, ["mine"])  # pyright: ignore[reportArgumentType]
    results = [
        policy_result(meta, task, FakeCurves(2.0), 4, [engine])  # pyright: ignore[reportArgumentType]
        for meta in (policy, dataclasses.replace(policy, inner_steps=0, trained_on=()))
        for task in ("mine", "other")
    ]
    assert [result.is_seen for result in results] == [True, False, False, False]
    assert [len(result.crossings) for result in results] == [1, 1, 0, 0]
    whole = TaskResult("t", 4, 8, [engine_result(engine)], results[2:])
    assert crossing_table(whole) is None
    assert crossing_table(dataclasses.replace(whole, policies=results)).row_count == 1


def test_the_table_shows_one_run_half_of_them_and_all():
    runs = [(a_report(4 * i + 4), FakeCurves(1.0 / (i + 1))) for i in range(8)]
    result = engine_result(read_off("e", [runs], [4 * i + 4 for i in range(8)]))
    console = Console(width=120)
    with console.capture() as capture:
        console.print(loss_table(TaskResult("t", 4, 32, [result], [])))
    row = next(line for line in capture.get().splitlines() if line.strip().startswith("e "))
    assert row.split()[:4] == ["e", "1", "0.25", "0.12"]


def test_engines_with_a_model_draw_a_quarter_at_random(trainer, tmp_path, monkeypatch):
    import hyperopt

    counts = []

    def suggest(*arguments, n_startup_jobs):
        counts.append(n_startup_jobs)
        return hyperopt.rand.suggest(*arguments)

    monkeypatch.setattr(hyperopt.tpe, "suggest", suggest)
    assert searched("hyperopt_tpe", trainer[0], 0, tmp_path).num_random == 4
    assert counts == [4] * RUNS
    many = [Search(trainer[0], runs * STEPS).num_random for runs in (2, 12, 1000)]
    assert many == [2, 3, 10]


def test_optuna_models_what_comes_after_a_quarter_at_random(trainer, tmp_path, monkeypatch):
    """Until there is a model, what a sampler of the same seed draws is the same."""
    import optuna

    def rates(folder):
        search = searched("optuna_tpe", trainer[0], 0, folder)
        by_trial = {report.trial: report.recipe[0, 0] for report in search.reports}
        return np.array(list(by_trial.values())[:RUNS])

    modelled, sampler = rates(tmp_path), optuna.samplers.TPESampler
    monkeypatch.setattr(
        optuna.samplers, "TPESampler", lambda seed, **rest: sampler(seed=seed, n_startup_trials=99)
    )
    (tmp_path / "random").mkdir()
    at_random = rates(tmp_path / "random")
    assert np.flatnonzero(modelled != at_random)[0] == 4


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_meta_train_fit_every_budget(way, tmp_path):
    """With at least ten outer steps each."""
    for budget in BUDGETS.values():
        settings = settings_of(way, ["digits_mlp"], budget.horizon, 0, tmp_path)
        assert settings.horizon[0] == 300 and settings.horizon[1] >= 1.5 * budget.steps
        assert 10 * settings.build().learner.steps <= budget.inner_steps


def test_meta_training_takes_the_inner_steps_it_is_given(tmp_path):
    settings = dataclasses.replace(
        settings_of("nres", ["quadratic"], (300, 600), 0, tmp_path),
        window=10,
        method=NRES(num_pairs=1, std=0.03),
    )
    of_one = settings.build().learner.steps
    _, _, summary = meta_trained(settings, 7.2 * of_one, Console(quiet=True))
    assert summary["inner_steps"] == 7 * of_one and summary["trained_on"]


def test_searches_and_reports_are_on_problems_that_differ(tmp_path, monkeypatch):
    keys, starts = [], []
    draw, search = one_task.draw_starts, ENGINES["random"].search
    monkeypatch.setattr(
        one_task, "draw_starts", lambda key, *rest: (keys.append(key), draw(key, *rest))[1]
    )

    def spy(found, seed, folder):
        starts.append(found.trainer.start.key)
        search(found, seed, folder)

    monkeypatch.setattr(one_task, "ENGINES", {"random": Engine(spy)})
    arguments = [*TINY[:-2], "random", "--policies", "--out", str(tmp_path / "hpo")]
    assert main(arguments) == 0
    searching, reporting = (jax.random.key_data(key) for key in keys)
    assert np.any(searching != reporting)
    assert np.any(jax.random.key_data(starts[0]) != jax.random.key_data(starts[1]))


def test_everybody_is_judged_on_the_same_problems_none_of_which_is_searched_on(
    tmp_path, monkeypatch
):
    """An engine that finds what a released optimizer does ends as that does."""
    released = str(tmp_path / "theta.safetensors")
    lopt = learnable_sgdm(learning_rate=0.1, momentum=0.9)
    known = {"inner_steps": 600, "trained_on": ["bowl"]}
    release.save(released, lopt, lopt.init(jax.random.key(0)), known)
    losses = []

    def search(found, seed, folder):
        rows = recipe(Hyperparameters(0.1, 0.1, end=1.0), found.trainer.num_steps)
        losses.extend([found.train(rows), found.train(rows)])

    monkeypatch.setattr(one_task, "ENGINES", {"random": Engine(search)})
    arguments = [
        *("compare-hpo", "--task", "user_module:bowl", "--steps", "10", "--runs", "2"),
        *("--searches", "3", "--seeds", "3", "--engines", "random", "--policies"),
        *("--released", released, "--out", str(tmp_path / "hpo")),
    ]
    assert main(arguments) == 0
    (task,) = json.loads((tmp_path / "hpo" / "hpo.json").read_text())["tasks"]
    (engine,), (policy,) = task["engines"], task["policies"]
    assert (policy["name"], policy["inner_steps"], policy["is_seen"]) == (released, 600, True)
    assert [where["engine"] for where in policy["crossings"]] == ["random"]
    assert policy["final_loss"][0] == pytest.approx(engine["final_loss"][0], rel=1e-4)
    assert policy["test"] == pytest.approx(engine["test"], rel=1e-4)
    assert np.median(losses) != pytest.approx(engine["final_loss"][0], rel=1e-2)


def test_every_repetition_of_a_search_has_a_seed_of_its_own(tmp_path):
    (task,) = tasks_to_evaluate(["user_module:bowl"])
    budget = dataclasses.replace(BUDGETS["small"], steps=8, runs=2, searches=3)
    key, console = stream(5, "evaluation"), Console(quiet=True)
    found = one_task.search_all("random", task, key, budget, 5, tmp_path, console)
    low, high = np.log(SPACE["learning_rate"])
    first = [np.exp(np.random.default_rng(seed).uniform(low, high)) for seed in (5, 6, 7)]
    np.testing.assert_allclose([reports[0].recipe[0, 0] for reports in found], first, rtol=1e-5)


def test_an_engine_without_a_whole_trial_is_told_and_nothing_is_kept_of_it(tmp_path, monkeypatch):
    def search(found, seed, folder):
        rows = recipe(Hyperparameters(0.1, 0.1, end=1.0), found.trainer.num_steps)
        next(found.trial(rows))

    monkeypatch.setattr(one_task, "ENGINES", {"random": Engine(search)})
    (task,) = tasks_to_evaluate(["user_module:bowl"])
    budget = dataclasses.replace(BUDGETS["small"], steps=8, runs=2, searches=1)
    with pytest.raises(RunError, match=r"^random ended without a whole trial\. Leave it out by"):
        one_task.search_all(
            "random", task, stream(0, "evaluation"), budget, 0, tmp_path, Console(quiet=True)
        )
    assert not list(tmp_path.rglob("*.npz"))


def test_recipes_are_evaluated_in_chunks_each_once_and_in_order(monkeypatch):
    (task,) = tasks_to_evaluate(["user_module:bowl"])
    budget = dataclasses.replace(BUDGETS["small"], steps=4, seeds=2)
    rates = (0.01, 0.03, 0.1, 0.2, 0.3)
    recipes = [recipe(Hyperparameters(rate, 1.0, end=1.0), 4) for rate in rates]
    ends = lambda: [
        curves.final_loss
        for curves in one_task.evaluate_recipes(recipes, task, stream(0, "evaluation"), budget)
    ]
    at_once = ends()
    monkeypatch.setattr(one_task, "RECIPES_AT_ONCE", 3)
    np.testing.assert_allclose(ends(), at_once, rtol=1e-5)
    assert len(np.unique(at_once)) == 10


def test_a_small_budget_keeps_the_first_and_the_last_task_of_every_family_and_those_named(capsys):
    console = Console(width=300)
    chosen = lambda names, most: [task.name for task in command.chosen(names, most, console)]
    families = ["digits_mlp", "imbalanced_digits_mlp"]
    ends = ["digits_mlp_32", "digits_mlp_64x64x64x64"]
    others = ["imbalanced_digits_mlp_32", "imbalanced_digits_mlp_64x64x64x64"]
    assert chosen([*families, "digits_mlp_64x32"], 2) == [*ends, *others, "digits_mlp_64x32"]
    left_out = [
        *("digits_mlp_32x32", "digits_mlp_128x128", "imbalanced_digits_mlp_32x32"),
        *("imbalanced_digits_mlp_64x32", "imbalanced_digits_mlp_128x128"),
    ]
    assert capsys.readouterr().out.startswith(f"not compared on {', '.join(left_out)}; name them")
    assert chosen(["digits_mlp"], 3) == [ends[0], "digits_mlp_32x32", ends[1]]
    capsys.readouterr()
    assert len(chosen(families, None)) == len(chosen(families, 5)) == 10
    assert not capsys.readouterr().out


TINY = [
    *("compare-hpo", "--task", "quadratic", "--steps", "20", "--runs", "4"),
    *("--searches", "2", "--seeds", "3", "--inner-steps", "1", "--engines", "random", "cosine"),
]


def test_a_comparison_from_end_to_end_and_continued(tmp_path, capsys):
    out = tmp_path / "hpo"
    arguments = [*TINY, "--policies", "ppo", "--out", str(out)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "meta-trained on runs of 300 steps, longer than --steps 20" in told.replace("\n", " ")
    assert "ppo" in told and (out / "hpo.png").stat().st_size > 1000
    result = json.loads((out / "hpo.json").read_text())
    task = result["tasks"][0]
    assert [engine["name"] for engine in task["engines"]] == ["random", "cosine"]
    assert [policy["name"] for policy in task["policies"]] == ["ppo", "untrained"]
    ppo = task["policies"][0]
    assert ppo["inner_steps"] > 0 and ppo["is_seen"]  # the only task there is
    for where in ppo["crossings"]:
        for spent, tasks in (where[of] for of in ("middle", "early", "late")):
            saved = (spent or 80) - 20
            assert tasks == (math.ceil(ppo["inner_steps"] / saved) if saved else None)
    untrained = task["policies"][1]
    assert untrained["crossings"] == [] and untrained["final_loss"] != ppo["final_loss"]
    files = sorted((out / "searches").rglob("*.npz"))
    assert len(files) == 4 * len(result["tasks"])
    before = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    (out / "hpo.json").unlink()
    with open(out / "config.json", "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main([*arguments, "--resume"]) == 2
    assert "--out must not be in use" in capsys.readouterr().err
    recorded = [a for a in arguments if a not in ("--engines", "random", "cosine")]
    assert main([*recorded, "--resume"]) == 0
    assert "(1 done before)" in capsys.readouterr().out
    again = json.loads((out / "hpo.json").read_text())
    by_name = lambda task: {engine["name"]: engine for engine in task["engines"]}
    assert list(map(by_name, again["tasks"])) == list(map(by_name, result["tasks"]))
    assert result["seconds"] > 0 and again["seconds"] is None
    changed = [path for path in files if path.stat().st_mtime_ns != before[path]]
    assert changed == files[:1]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --out must be new or empty") and "another --out" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "hyperop"], "`engines` must be a known name; got hyperop. Try hyperopt_tpe"),
        (["--engines", "random", "random"], "--engines must differ; got random random."),
        (["--policies", "nes"], "--policies must be a known name; got nes. Try nres"),
        (["--policies", "ppo", "ppo"], "--policies must differ; got ppo ppo."),
        (["--inner-steps", "nan"], "--inner-steps must be at least 1 and finite; got nan. Try"),
        (["--inner-steps", "inf"], "--inner-steps must be at least 1 and finite; got inf. Try"),
        (["--task", "user_module:uncapped"], "loss_cap` of task uncapped must be finite for r"),
        (["--runs", "1"], "--runs must be at least 2 and finite; got 1. Try --runs 16"),
        (["--steps", "0"], "--steps must be at least 1 and finite; got 0. Try --steps 400"),
        (["--searches", "0"], "--searches must be at least 1 and finite; got 0. Try --searches 3"),
        (["--released", "nowhere"], "nowhere"),
        (["--task", "digit_mlp"], "--task must be a known name; got digit_mlp. Try digits_mlp"),
        (["--seed", "-1"], "--seed must be between 0 and 2**32 - 1; got -1."),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    out = tmp_path / "hpo"
    assert main(["compare-hpo", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message.replace("`engines`", "--engines") in error and error.count("\n") == 1
    assert not out.exists()


def test_an_engine_that_is_not_installed_says_how_to_get_it(tmp_path, capsys, monkeypatch):
    absent = Engine(ENGINES["hyperopt_tpe"].search, ("hyperopt_that_is_not_there",))
    monkeypatch.setattr(engines, "ENGINES", {**ENGINES, "hyperopt_tpe": absent})
    out = ["--out", str(tmp_path / "hpo")]
    assert main(["compare-hpo", "--engines", "hyperopt_tpe", *out]) == 2
    assert "needs hyperopt_that_is_not_there. Try pip install 'l2o[tune]'" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "hpo").exists()


@pytest.mark.slow
def test_a_population_of_ray_searches_within_its_budget(trainer, tmp_path):
    ray = pytest.importorskip("ray")
    search = searched("ray_pbt", trainer[0], 1, tmp_path)
    ray.shutdown()
    assert search.spent == search.budget
    last = incumbents(search.reports)[-1]
    assert last.step == STEPS
    # What a member did, history and all, is what its recipe says.
    np.testing.assert_allclose(
        search.trainer.advance(trainer[0].begin(), last.recipe, 0, STEPS)[1], last.loss, rtol=1e-3
    )
    copied = [r for r in search.reports if len(np.unique(r.recipe[:, 0])) > 1]
    assert copied  # some went on with other rates
    assert all(a.spent < b.spent for a, b in itertools.pairwise(search.reports))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["nres", "CMA_ES"])
def test_other_ways_meta_train(way, tmp_path):
    assert main([*TINY, "--policies", way, "--out", str(tmp_path)]) == 0
    (task,) = json.loads((tmp_path / "hpo.json").read_text())["tasks"]
    assert [policy["name"] for policy in task["policies"]] == [way, "untrained"]


@pytest.mark.slow
def test_a_member_of_ray_that_fails_is_told(trainer, tmp_path):
    ray = pytest.importorskip("ray")
    broken = dataclasses.replace(trainer[0], start=None)
    with pytest.raises(RunError, match=r"ray_pbt: \d+ of 16 members failed: "):
        ENGINES["ray_pbt"].search(Search(broken, RUNS * STEPS), 0, tmp_path)
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interrupt", "status", "message"),
    [
        (
            ["pkill", "-9", "-n", "-P", "raylet", "-f", "ray::Member"],
            2,
            "error: ray_pbt: 1 of 4 members failed",
        ),
        (["kill", "-INT", "parent"], 130, "interrupted"),
    ],
    ids=["a member dies", "Ctrl-C"],
)
def test_a_population_of_ray_that_is_interrupted_is_no_result(tmp_path, interrupt, status, message):
    pytest.importorskip("ray")
    script = f"""
import os, subprocess
from l2o.cli.main import run
from l2o.hpo.search import Search

record = Search.record

def interrupted(search, *report):
    record(search, *report)
    if len(search.reports) == 6:
        of_ray = lambda *words: subprocess.check_output(["pgrep", *words], text=True).split()[-1]
        me = str(os.getpid())
        words = [me if word == "parent" else word for word in {interrupt}]
        words = [of_ray("-P", me, "raylet") if word == "raylet" else word for word in words]
        subprocess.run(words, check=True)

Search.record = interrupted
run()
"""
    options = ["--task", "quadratic", "--steps", "40", "--runs", "4", "--searches", "1"]
    what = ["--engines", "ray_pbt", "--seeds", "2", "--out", str(tmp_path), "--policies"]
    done = subprocess.run(
        [sys.executable, "-c", script, "compare-hpo", *options, *what],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stderr.splitlines()[-1][: len(message)]) == (status, message)
    assert not list(tmp_path.glob("**/*.npz")) and not (tmp_path / "hpo.json").exists()
