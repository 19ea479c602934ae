"""The search for the best settings, against closed forms and brute force."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parabolas import KEY, noisy, parabola

from l2o.evaluation import tuning
from l2o.evaluation.baseline import Baseline, half_decades
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.statistics import first_reach, median_interval
from l2o.evaluation.training import Trainer
from l2o.evaluation.trials import Trial, Trials, beside
from l2o.evaluation.tuning import (
    Search,
    choose,
    draw_around,
    prepare,
    refine,
    trainer_of,
    tune,
    tune_one,
)

SEEDS = 8


def descent(low: int, high: int) -> Baseline:
    """Gradient descent, for which a parabola's best rate is known."""
    return Baseline(
        "SGD", "Plain.", lambda c, horizon: optax.sgd(c["learning_rate"]), half_decades(low, high)
    )


def search(baseline, task, *, horizon=1, num_random=0, path=None):
    trainer = trainer_of(task, baseline, horizon)
    trials = Trials(trainer, draw_starts(KEY, task, SEEDS), baseline.defaults, path)
    other = path.with_name(f"{path.stem}_finalists.json") if path else None
    again = trials.on(draw_starts(jax.random.fold_in(KEY, 1), task, SEEDS), other)
    return tune_one(Search("it", baseline, trials, again), num_random=num_random)


@pytest.mark.parametrize("grid", [(-8, -1), (-8, -5), (4, 7)])
def test_the_best_rate_is_found_wherever_the_grid_begins(grid):
    # One step at rate 1/h, which is 0.5, is at the minimum.
    found = search(descent(*grid), parabola())
    assert not found.at_grid_edge
    assert abs(np.log10(found.best.learning_rate / 0.5)) < 0.5 / 3 / 2
    assert len(found.beside_best) >= tuning.RATES
    assert len({trial.learning_rate for trial in found.trials}) == len(found.trials)


def test_a_rate_at_the_edge_is_marked():
    # A slope: the higher the rate, the lower the loss.
    slope = dataclasses.replace(
        parabola(), loss=lambda params, batch, instance: -params["x"], loss_cap=np.inf
    )
    found = search(descent(-8, -5), slope)
    assert found.at_grid_edge
    assert found.best.learning_rate == max(trial.learning_rate for trial in found.trials)


@pytest.mark.parametrize("name", ["adam", "muon", "sgdm"])
def test_a_finer_grid_gains_less_than_the_interval(name):
    task, horizon = noisy(), 30
    (found,) = tune(
        KEY, task, horizon=horizon, num_seeds=SEEDS, baselines=[name], num_random=0
    ).values()
    rates = found.best.learning_rate * 10.0 ** (np.arange(-12, 13) / 36.0)
    settings = {k: np.full(rates.size, v) for k, v in BASELINES[name].defaults.items()}
    trainer = trainer_of(task, BASELINES[name], horizon)
    starts = jax.tree.map(lambda x: x[SEEDS:], draw_starts(KEY, task, 2 * SEEDS))
    finer = trainer.train(settings | {"learning_rate": rates}, starts)
    lowest = min(np.median(curves.final_loss) for curves in finer)
    assert lowest >= median_interval(found.again.final_loss).low


def test_random_settings_are_in_their_ranges_and_the_best_of_all_is_taken():
    baseline = BASELINES["sgdm_cosine"]
    found = search(baseline, noisy(), horizon=30, num_random=8)
    random = [trial for trial in found.trials if trial.config["warmup"] > 0.0]
    assert len({trial.config["warmup"] for trial in random}) == 8
    for trial in random:
        for name, values in baseline.space.items():
            assert values.low <= trial.config[name] <= values.high
    whole = [trial for trial in found.trials if trial.config["horizon_fraction"] == 1.0]
    lowest = min(whole, key=lambda trial: trial.median)
    assert len(beside(found.trials, lowest)) > 1  # it was looked around
    families = [[t.learning_rate for t in beside(whole, trial)] for trial in whole]
    inside = [
        trial
        for trial, rates in zip(whole, families, strict=True)
        if trial is lowest or min(rates) < trial.learning_rate < max(rates)
    ]
    assert found.best in sorted(inside, key=lambda trial: trial.median)[:4]


def fallible(good: float) -> Baseline:
    """Gradient descent that does nothing on seeds that begin above a value."""

    def make(config, horizon):
        del horizon

        def update(grads, state, params):
            fails = (config["learning_rate"] > 0.45) & (params["x"] > good)
            return {"x": jnp.where(fails, 0.0, -config["learning_rate"] * grads["x"])}, state

        return optax.GradientTransformation(lambda params: (), update)

    return Baseline("fallible", "Fails on some seeds.", make, (0.1, 0.4, 0.5, 0.6))


def test_finalists_are_told_apart_on_other_seeds():
    # At the best rate runs fail on the seeds that begin high. In the search these are few, and
    # among the finalists' seeds they are most.
    task = parabola()
    starts = draw_starts(KEY, task, SEEDS)
    x = np.sort(np.ravel(starts.params["x"]))
    baseline = fallible(float(x[SEEDS // 2]))
    trials = Trials(trainer_of(task, baseline, 1), starts, baseline.defaults, None)
    trials.attempt([{"learning_rate": rate} for rate in baseline.learning_rates])
    assert trials.best.learning_rate == 0.5
    high = jax.tree.map(lambda leaf: leaf, starts)._replace(
        params={"x": starts.params["x"] * 0.0 + float(x[-1])}
    )
    best, again = choose(trials, trials.on(high, None))
    assert best.learning_rate == again.learning_rate == 0.4
    assert choose(trials, trials.on(starts, None))[0].learning_rate == 0.5
    # A rate at the end of the grid is none, unless it is the best of the search.
    tried = trials.on(high, None)
    choose(trials, tried)
    assert [trial.learning_rate for trial in tried.tried] == [0.5, 0.4]


def test_seeds_of_finalists_are_others_than_those_of_the_search():
    task, baseline = noisy(), descent(-4, -1)
    found = prepare(task, "it", baseline, draw_starts(KEY, task, 2 * SEEDS), horizon=2)
    keys = np.concatenate(
        [jax.random.key_data(part.starts.key) for part in (found.trials, found.again)]
    )
    assert len(np.unique(keys, axis=0)) == 2 * SEEDS
    theirs = jax.random.key_data(draw_starts(KEY, task, SEEDS).key)
    np.testing.assert_array_equal(keys[:SEEDS], theirs)


class Formula(Trials):
    """Trials whose final losses are a formula of the rate."""

    def __init__(self, final_loss, learning_rates):
        self.final_loss, self.tried = final_loss, []
        self.attempt([{"learning_rate": rate} for rate in learning_rates])

    def attempt(self, configs):
        for config in configs:
            losses = self.final_loss(config["learning_rate"]) * np.ones(SEEDS)
            self.tried.append(Trial({"horizon_fraction": 1.0, **config}, losses, 0.0, losses[:1]))


def decades_from_best(rate):
    """As far from every multiple of each spacing, half a decade and thirds of it, as can be."""
    return abs(np.log10(rate) + 1.2499)


def test_a_grid_gets_finer_as_long_as_that_gains_more_than_the_interval():
    trials = Formula(decades_from_best, half_decades(-6, 1))
    refine(trials)  # the interval of equal seeds has no width
    assert len(trials.tried) == 8 + 4 * tuning.MOST_ROUNDS
    assert decades_from_best(trials.best.learning_rate) < 0.5 / 3**tuning.MOST_ROUNDS


def test_a_grid_does_not_get_finer_for_less_than_the_interval():
    seeds = np.linspace(-1.0, 1.0, SEEDS)
    trials = Formula(lambda rate: decades_from_best(rate) + seeds, half_decades(-6, 1))
    refine(trials)
    assert len(trials.tried) == 8 + 4


def test_random_rates_are_around_the_best():
    trials = Formula(decades_from_best, [1e-3])
    draw_around(trials, BASELINES["sgdm_cosine"], 16)
    away = np.log10([trial.learning_rate / 1e-3 for trial in trials.tried[1:]])
    assert len(away) == 16
    assert -0.5 <= min(away) < -0.4 and 0.4 < max(away) <= 0.5


def test_the_fastest_may_be_told_a_shorter_horizon():
    def at_the_end(config, horizon):
        last = config["horizon_fraction"] * horizon - 1.0
        return optax.sgd(lambda count: config["learning_rate"] * (count >= last))

    late = Baseline("late", "Steps at its end.", at_the_end, half_decades(-4, 3), is_scheduled=True)
    found = search(late, parabola(), horizon=20)
    assert found.best.config["horizon_fraction"] == 1.0
    assert found.fastest.config["horizon_fraction"] == min(tuning.FRACTIONS)
    reach = first_reach(np.arange(21), found.fastest.curve, found.best.median)
    assert 3.0 < reach <= 5.0


@pytest.mark.parametrize("name", ["adam", "muon", "schedule_free", "sgdm_cosine"])
def test_the_fastest_is_at_the_target_no_later_than_the_best(name):
    found = search(BASELINES[name], noisy(), horizon=30)
    target, steps = found.best.curve[-1], np.arange(31)
    reach = first_reach(steps, found.fastest.curve, target)
    assert reach <= first_reach(steps, found.best.curve, target) <= 30


def test_a_coarse_grid_is_refined_to_the_best_rate_all_the_same():
    baseline = dataclasses.replace(descent(-8, -1), learning_rates=(1e-4, 1e-2, 1.0))
    found = search(baseline, parabola())
    assert abs(np.log10(found.best.learning_rate / 0.5)) < 0.5 / 3


def test_more_random_settings_cost_no_more_than_those_that_are_missing(tmp_path, monkeypatch):
    path, baseline = tmp_path / "it.json", BASELINES["sgdm_cosine"]
    for num_random in (2, 6):
        search(baseline, noisy(), horizon=20, num_random=num_random, path=path)
    rows = json.loads(path.read_text())["trials"]
    assert len(rows) == len({json.dumps(row["config"]) for row in rows})
    before = path.read_bytes()
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trains again"))
    search(baseline, noisy(), horizon=20, num_random=6, path=path)
    assert path.read_bytes() == before


def test_who_asks_is_told_what_was_tried_so_far():
    told = []
    options = dict(horizon=2, num_seeds=SEEDS, baselines=["sgdm"], num_random=2)
    tell = lambda trials: told.append((len(trials.tried), trials.best.median))
    (found,) = tune(KEY, parabola(), on_tried=tell, **options).values()
    numbers, medians = zip(*told, strict=True)
    assert numbers[:2] == (4, 8) and list(numbers) == sorted(set(numbers))
    assert numbers[-1] == len(found.trials)
    assert list(medians) == sorted(medians, reverse=True)
    assert medians[-1] == min(trial.median for trial in found.trials)


def test_diverged_runs_count_as_the_cap_and_lose():
    found = search(descent(-4, 3), parabola(cap=8.0), horizon=20)
    high = max(found.trials, key=lambda trial: trial.learning_rate)
    assert high.diverged == 1.0 and high.final_loss.tolist() == [8.0] * SEEDS
    assert found.best.diverged == 0.0


def test_what_is_untuned_is_tried_once():
    found = search(BASELINES["dog"], noisy(), horizon=5)
    assert len(found.trials) == 1 and not found.is_tuned and not found.at_grid_edge


def test_a_search_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    options = dict(horizon=20, num_random=4)
    whole = search(BASELINES["sgdm_cosine"], noisy(), path=tmp_path / "whole.json", **options)
    train, calls = Trainer.train, []

    def stops(self, *args, **kwargs):
        calls.append(args)
        if len(calls) in (3, 6):
            raise KeyboardInterrupt
        return train(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "train", stops)
    path = tmp_path / "stopped.json"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            search(BASELINES["sgdm_cosine"], noisy(), path=path, **options)
    resumed = search(BASELINES["sgdm_cosine"], noisy(), path=path, **options)
    assert path.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert resumed.best.config == whole.best.config
    calls.clear()
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trains again"))
    search(BASELINES["sgdm_cosine"], noisy(), path=path, **options)


@pytest.mark.parametrize("changed", ["l2o", "jax", "optax", "data", "starts", "program"])
def test_a_tuning_of_other_versions_or_data_is_refused(tmp_path, changed):
    path = tmp_path / "it.json"
    search(descent(-2, 1), parabola(), path=path)
    content = json.loads(path.read_text())
    content["identity"][changed] = "other"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"`cache` must be of these .* whose {changed} is other"):
        search(descent(-2, 1), parabola(), path=path)


def test_another_task_or_method_under_the_same_name_is_refused(tmp_path):
    path = tmp_path / "it.json"
    search(descent(-2, 1), parabola(), path=path)
    steeper = dataclasses.replace(
        parabola(), loss=lambda params, shift, instance: 3.0 * params["x"] ** 2
    )
    with pytest.raises(ValueError, match="whose program is"):
        search(descent(-2, 1), steeper, path=path)
    with pytest.raises(ValueError, match="whose program is"):
        search(BASELINES["sgdm"], parabola(), path=path)
    others = {
        "init": lambda key, instance: {"x": 5.0 + jax.random.uniform(key)},
        "sample": lambda key: {"curvature": jnp.float32(0.1)},
        "loss_cap": 10.0,
    }
    for name, value in others.items():
        other = dataclasses.replace(parabola(), **{name: value})
        with pytest.raises(ValueError, match="whose starts is"):
            search(descent(-2, 1), other, path=path)


def test_a_damaged_tuning_is_refused(tmp_path):
    path = tmp_path / "it.json"
    path.write_text('{"identity": {}')
    with pytest.raises(ValueError, match=r"`cache` must be a folder; got .*, which is a file"):
        tune(KEY, parabola(), horizon=4, num_seeds=8, baselines=["sgdm"], cache=path)
    with pytest.raises(ValueError, match=r"`cache` must hold tunings; got .* cannot be read"):
        search(descent(-2, 1), parabola(), path=path)


@pytest.mark.parametrize(
    "rates", [(), (0.1,), (0.0, 1.0), (1.0, 0.1), (-1.0, 1.0), (0.1, np.inf), (np.nan, 1.0)]
)
def test_bad_learning_rates(rates):
    with pytest.raises(ValueError, match=r"`learning_rates` must be .* at least two to tune; got"):
        tune(KEY, parabola(), horizon=2, num_seeds=SEEDS, learning_rates=rates)


@pytest.mark.slow
def test_a_killed_command_goes_on_to_the_same_bytes(tmp_path):
    def command(cache):
        words = ["--task", "quadratic_10", "--horizon", "40", "--seeds", "8", "--trials", "4"]
        names = ["--baselines", "sgdm", "adam", "--cache", str(tmp_path / cache)]
        return [sys.executable, "-m", "l2o", "tune-baselines", *words, *names]

    subprocess.run(command("whole"), check=True)
    for seconds in (6, 9, 12):
        process = subprocess.Popen(command("killed"))
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command("killed"), check=True)
    (whole,) = (tmp_path / "whole").iterdir()
    for file in whole.iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / whole.name / file.name).read_bytes()
