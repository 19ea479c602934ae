"""`l2o compare-hpo` from end to end: what was found and what it cost is reported as it is."""

import dataclasses
import fcntl
import json
import math

import jax
import numpy as np
import pytest
from rich.console import Console

from l2o import release
from l2o.cli import compare_hpo as command
from l2o.cli.compare_hpo import BUDGETS, CompareHPO, recorded_engines
from l2o.cli.hpo_policies import WAYS, settings_of
from l2o.cli.main import main
from l2o.cli.meta_train import meta_trained
from l2o.cli.methods.estimators import NRES
from l2o.hpo import engines, task_comparison
from l2o.hpo.engines import ENGINES, Engine
from l2o.hpo.schedule import Hyperparameters, schedule
from l2o.optimizers.learnable import learnable_sgdm


def test_engines_are_not_read_from_a_damaged_configuration(tmp_path):
    for content in ("[]", '{"engines": null}', '{"engines": 3}', '{"engines": ["no"]}', "{"):
        (tmp_path / "config.json").write_text(content)
        assert recorded_engines(CompareHPO(out=str(tmp_path), resume=True)) == []


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_meta_train_fit_every_budget(way, tmp_path):
    """With at least ten outer steps each."""
    for budget in BUDGETS.values():
        settings = settings_of(way, ["digits_mlp"], budget.meta_training_horizon, 0, tmp_path)
        assert settings.horizon[0] == 300 and settings.horizon[1] >= 1.5 * budget.horizon
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
    draw, search = task_comparison.draw_starts, ENGINES["random"].search
    monkeypatch.setattr(
        task_comparison, "draw_starts", lambda key, *rest: (keys.append(key), draw(key, *rest))[1]
    )

    def spy(found, seed, folder):
        starts.append(found.trainer.start.key)
        search(found, seed, folder)

    monkeypatch.setattr(task_comparison, "ENGINES", {"random": Engine(spy)})
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
        rows = schedule(Hyperparameters(0.1, 0.1, end=1.0), found.trainer.horizon)
        losses.extend([found.train(rows), found.train(rows)])

    monkeypatch.setattr(task_comparison, "ENGINES", {"random": Engine(search)})
    arguments = [
        *("compare-hpo", "--task", "user_module:bowl", "--horizon", "10", "--runs", "2"),
        *("--searches", "3", "--seeds", "8", "--engines", "random", "--policies"),
        *("--released", released, "--out", str(tmp_path / "hpo")),
    ]
    assert main(arguments) == 0
    (task,) = json.loads((tmp_path / "hpo" / "hpo.json").read_text())["tasks"]
    (engine,), (policy,) = task["engines"], task["policies"]
    assert (policy["name"], policy["inner_steps"], policy["is_seen"]) == (released, 600, True)
    assert [where["engine"] for where in policy["break_even"]] == ["random"]
    assert policy["final_loss"][0] == pytest.approx(engine["final_loss"][0], rel=1e-4)
    assert policy["test"] == pytest.approx(engine["test"], rel=1e-4)
    assert np.median(losses) != pytest.approx(engine["final_loss"][0], rel=1e-2)


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
    *("compare-hpo", "--task", "quadratic", "--horizon", "20", "--runs", "4"),
    *("--searches", "2", "--seeds", "8", "--inner-steps", "1", "--engines", "random", "cosine"),
]


@pytest.mark.slow
def test_a_comparison_from_end_to_end_and_continued(tmp_path, capsys):
    out = tmp_path / "hpo"
    arguments = [*TINY, "--policies", "ppo", "--out", str(out)]
    assert main(arguments) == 0
    told = capsys.readouterr().out
    assert "meta-trained on runs of 300 steps, longer than --horizon 20" in told.replace("\n", " ")
    assert "ppo" in told and (out / "hpo.png").stat().st_size > 1000
    result = json.loads((out / "hpo.json").read_text())
    task = result["tasks"][0]
    assert [engine["name"] for engine in task["engines"]] == ["random", "cosine"]
    assert [policy["name"] for policy in task["policies"]] == ["ppo", "untrained"]
    ppo = task["policies"][0]
    assert ppo["inner_steps"] > 0 and ppo["is_seen"]  # the only task there is
    for where in ppo["break_even"]:
        for used, tasks in (where[which] for which in ("middle", "early", "late")):
            saved = (used or 80) - 20
            assert tasks == (math.ceil(ppo["inner_steps"] / saved) if saved else None)
    untrained = task["policies"][1]
    assert untrained["break_even"] == [] and untrained["final_loss"] != ppo["final_loss"]
    files = sorted((out / "searches").rglob("*.npz"))
    assert len(files) == 4 * len(result["tasks"])
    before = {path: path.stat().st_mtime_ns for path in files}
    files[0].unlink()
    (out / "hpo.json").unlink()
    with open(out / ".lock", "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main([*arguments, "--resume"]) == 2
    assert "`out` must not be in use" in capsys.readouterr().err
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
    assert error.startswith("error: `out` must be new or empty") and "another --out" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engines", "hyperop"], "`engines` must be a known name; got hyperop. Try hyperopt_tpe"),
        (["--engines", "random", "random"], "`engines` must differ; got random random."),
        (["--policies", "nes"], "`policies` must be a known name; got nes. Try nres"),
        (["--policies", "ppo", "ppo"], "`policies` must differ; got ppo ppo."),
        (["--inner-steps", "nan"], "`inner_steps` must be at least 1 and finite; got nan. Try"),
        (["--inner-steps", "inf"], "`inner_steps` must be at least 1 and finite; got inf. Try"),
        (["--task", "user_module:uncapped"], "loss_cap` of task uncapped must be finite for r"),
        (["--runs", "1"], "`runs` must be at least 2 and finite; got 1. Try runs=16"),
        (["--horizon", "0"], "`horizon` must be at least 1 and finite; got 0. Try horizon=400"),
        (["--searches", "0"], "`searches` must be at least 1 and finite; got 0. Try searches=3"),
        (["--released", "nowhere"], "nowhere"),
        (["--task", "digit_mlp"], "`task` must be a known name; got digit_mlp. Try digits_mlp"),
        (["--seed", "-1"], "`seed` must be between 0 and 2**32 - 1; got -1."),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path, capsys):
    out = tmp_path / "hpo"
    assert main(["compare-hpo", *arguments, "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
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
@pytest.mark.parametrize("way", ["nres", "CMA_ES"])
def test_other_ways_meta_train(way, tmp_path):
    assert main([*TINY, "--policies", way, "--out", str(tmp_path)]) == 0
    (task,) = json.loads((tmp_path / "hpo.json").read_text())["tasks"]
    assert [policy["name"] for policy in task["policies"]] == [way, "untrained"]
