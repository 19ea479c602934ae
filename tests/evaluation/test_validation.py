"""Validation while theta is meta-trained: scores known in closed form, and the best theta kept."""

import dataclasses
import io
import math
import shutil
from pathlib import Path

import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

import l2o
from l2o import release
from l2o.cli.meta_train import about_run, meta_train, train
from l2o.cli.methods.estimators import PES
from l2o.cli.settings import MetaTraining, Output, Processes
from l2o.cli.validation import Validation, about_validation, best_of_validation
from l2o.evaluation.validation import ValidationCurve, Validator, best_row, read_rows
from l2o.learner import Learner, MetaState
from l2o.rng import stream
from l2o.runs.folder import RunFolder
from l2o.runs.logging import TIMING_FIELDS, Tracker

KEY = stream(0, "validation")


def parabola(name: str = "parabola", *, valid: float = 0.0, cap: float = 100.0) -> l2o.Task:
    """½ x² from x = 1, to which the validation split adds a constant."""
    added = {"train": 0.0, "valid": valid, "test": float("nan")}
    return l2o.Task(
        name=name,
        sample=lambda key: (),
        init=lambda key, instance: {"x": jnp.ones(1)},
        batch=lambda key, instance, data, split: jnp.float32(added[split]),
        loss=lambda params, batch, instance: 0.5 * jnp.sum(jnp.square(params["x"])) + batch,
        loss_cap=cap,
    )


RATE = l2o.LearnedOptimizer(
    name="rate_of_a_horizon",
    init=lambda key: jnp.float32(1.0),
    transform=lambda theta, *, horizon=None: optax.sgd(theta / horizon),
)
"""Gradient descent whose rate is theta over the number of steps that it is told."""


def test_the_score_is_that_of_the_validation_loss_in_closed_form():
    """After n steps of rate θ / n the loss ½ x² is (1 - θ / n)^(2n) of that at the start."""
    tasks = [parabola(), parabola("raised", valid=0.5)]
    validator = Validator(KEY, tasks, RATE, horizon=10, num_seeds=2)
    left = 0.8**20
    expected = [math.log(1 / left), math.log(1.0 / (0.5 * left + 0.5))]
    expected = [value / math.log(1000) for value in expected]
    found = validator(jnp.float32(2.0))
    assert found["parabola/score"] == pytest.approx(expected[0], rel=1e-5)
    assert found["raised/score"] == pytest.approx(expected[1], rel=1e-5)
    assert found["score"] == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert found["raised/loss"] == pytest.approx(0.5 * left + 0.5, rel=1e-5)
    assert found["raised/diverged"] == 0.0
    assert validator.inner_steps == 2 * 2 * 10
    assert validator(jnp.float32(10.0))["parabola/score"] == 1.0  # at the minimum


def test_no_progress_and_divergence_score_zero():
    validator = Validator(KEY, [parabola()], RATE, horizon=10, num_seeds=2)
    for theta, diverged in ((0.0, 0.0), (20.5, 0.0), (40.0, 1.0), (float("nan"), 1.0)):
        found = validator(jnp.float32(theta))
        assert found["score"] == 0.0 and found["parabola/diverged"] == diverged


def test_a_diverged_run_scores_zero_where_the_cap_is_below_the_start():
    validator = Validator(KEY, [parabola(cap=0.1)], RATE, horizon=10, num_seeds=2)
    assert validator(jnp.float32(20.5))["score"] == 0.0


def test_nothing_is_compiled_for_another_theta():
    traces = []

    def loss(params, batch, instance):
        traces.append(params)
        return jnp.sum(jnp.square(params["x"]))

    task = dataclasses.replace(parabola(), loss=loss)
    validator = Validator(KEY, [task], RATE, horizon=10, num_seeds=2)
    validator.compile(jnp.float32(1.0))
    before = len(traces)
    scores = {validator(jnp.float32(theta))["score"] for theta in (0.2, 0.5, 1.0)}
    assert len(traces) == before and len(scores) == 3


def test_a_start_without_a_positive_loss_is_refused():
    with pytest.raises(ValueError, match=r"positive, finite .*; got -0.5 of below. Try another"):
        Validator(KEY, [parabola("below", valid=-1.0)], RATE, horizon=10, num_seeds=2)


class Scripted:
    """A validator whose thetas are their own scores."""

    inner_steps = 7

    def __init__(self):
        self.calls = 0

    def compile(self, theta):
        del theta

    def __call__(self, theta):
        self.calls += 1
        return {"score": theta}


def test_the_first_of_the_highest_scores_is_the_best(tmp_path):
    validator = Scripted()
    curve = ValidationCurve(tmp_path / "validation.jsonl", validator)
    added = [curve.add(10 * i, score) for i, score in enumerate((0.0, 0.5, 0.3, 0.5, 0.6))]
    assert [is_best for _, is_best in added] == [False, True, False, False, True]
    rows = read_rows(curve.path)
    assert [row["inner_steps"] for row in rows] == [7, 14, 21, 28, 35]
    assert rows[-1] == added[-1][0]
    assert curve.add(40, 0.1) == added[-1]  # which has been done, and is not done again
    assert validator.calls == 5 and read_rows(curve.path) == rows
    assert best_row(rows) == rows[-1] and best_row(rows[:1]) is None


SETTINGS = MetaTraining(
    task=("user_module:bowl",),
    optimizer=("learnable_sgd",),
    horizon=(8,),
    window=2,
    steps=8,
    log_every=1,
    checkpoint_every=1,
    evaluate=False,
    validation=Validation(validate_on=("user_module:two_bowls",), validate_every=2),
    processes=Processes(devices=1),
    method=PES(num_pairs=2, std=0.1),
)
QUIET = Console(quiet=True)


def ascending() -> Learner:
    """Each outer step adds 1 to the logarithm of the rate, beyond what converges."""

    def init(key, theta):
        return MetaState(theta, theta, (), {"key": key}, jnp.int32(0))

    def step(key, state, data):
        theta = state.theta + 1.0
        metrics = {"meta_loss": jnp.float32(1.0), "finite": jnp.float32(1.0)}
        return state._replace(theta=theta, average=theta, step=state.step + 1), metrics

    return Learner(init=init, step=step, theta=lambda state: state.average, steps=1)


@pytest.fixture(scope="module")
def ascent():
    return dataclasses.replace(SETTINGS.build(), learner=ascending())


def ascend(folder: Path, parts, *, resume: bool = False) -> RunFolder:
    run = RunFolder.open(folder, SETTINGS.recorded(), resume=resume)
    train(SETTINGS, parts, run, {"trained_on": ["bowl"]}, [], QUIET)
    return run


def files(run: RunFolder) -> tuple[list[dict], dict, dict]:
    """What does not depend on the clock: rows, and summary and weights of the validated theta."""
    header, arrays = release.read(run.validated)
    seconds = {"compute_seconds", "validation_seconds"}
    summary = {k: v for k, v in header["summary"].items() if k not in seconds}
    rows = [
        {k: v for k, v in r.items() if k not in TIMING_FIELDS} for r in read_rows(run.validation)
    ]
    return rows, summary, {k: v.tobytes() for k, v in arrays.items()}


@pytest.fixture(scope="module")
def ascended(ascent, tmp_path_factory):
    return ascend(tmp_path_factory.mktemp("runs") / "run", ascent)


def test_the_best_is_kept_when_the_score_falls_later(ascent, ascended):
    rows, summary, _ = files(ascended)
    assert [row["step"] for row in rows] == [2, 4, 6, 8]
    scores = [row["score"] for row in rows]
    assert scores[1] == max(scores) > scores[0] > scores[2] == scores[3] == 0.0
    lopt, theta = release.load(ascended.validated)
    assert theta["log_learning_rate"] == pytest.approx(math.log(0.01) + 4.0)
    assert ascent.validator(theta)["score"] == scores[1]
    names = [task.name for task in ascent.validator.tasks]
    assert names == ["two_bowls"] == summary["validated_on"][:1] and lopt.name == "learnable_sgd"
    assert summary["validation_scores"]["step"] == 4 and summary["inner_steps"] == 4
    assert summary["validation_inner_steps"] == 2 * 8 * 8


class Crash(BaseException):
    """What no part of the run catches."""


@pytest.mark.parametrize("moment", ["before the line", "before the file"])
def test_a_run_that_ends_within_a_validation_and_goes_on_is_as_if_it_had_not(
    moment, ascent, ascended, tmp_path, monkeypatch
):
    def crash(*_, **__):
        raise Crash

    with monkeypatch.context() as patch:
        if moment == "before the line":
            patch.setattr(Validator, "__call__", crash)
        else:
            patch.setattr("l2o.cli.meta_train.about_validation", crash)
        with pytest.raises(Crash):
            ascend(tmp_path / "run", ascent)
    run = RunFolder(tmp_path / "run")
    assert not run.validated.exists()
    assert len(read_rows(run.validation)) == (moment == "before the file")
    assert files(ascend(run.path, ascent, resume=True)) == files(ascended)


def test_lines_after_the_checkpoint_are_made_again(ascent, ascended, tmp_path):
    run = RunFolder(shutil.copytree(ascended.path, tmp_path / "run"))
    shutil.rmtree(run.checkpoints / "8")
    with open(run.validation, "a") as file:
        file.write('{"torn')
    assert files(ascend(run.path, ascent, resume=True)) == files(ascended)


def test_what_theta_has_seen_and_was_chosen_by_goes_on_with_it(ascent, ascended, tmp_path):
    settings = dataclasses.replace(SETTINGS, init_from=str(ascended.validated))
    run = RunFolder.open(tmp_path / "run", settings.recorded(), resume=False)
    about = about_run(settings, ascent, run, QUIET)
    assert about["validated_on"][0] == "two_bowls" and about["trained_on"][0] == "bowl"
    assert (
        about_validation(about, ascent.validator.tasks, {})["validated_on"]
        == (about["validated_on"])
    )
    elsewhere = dataclasses.replace(
        settings, task=("rosenbrock",), validation=Validation(validate_on=("user_module:bowl",))
    )
    with pytest.raises(ValueError, match="`validate_on` must name held-out tasks; got bowl"):
        elsewhere.build()


def test_the_score_is_shown_while_the_run_goes_on(ascent, tmp_path):
    shown = io.StringIO()
    run = RunFolder.open(tmp_path / "run", SETTINGS.recorded(), resume=False)
    console = Console(file=shown, width=80)
    tracked = []
    tracker = Tracker("mine", tracked.append)
    train(SETTINGS, ascent, run, {"trained_on": []}, [tracker], console)
    rows = read_rows(run.validation)
    last = shown.getvalue().splitlines()[-1]
    assert last.startswith("step 8/8") and f"  validation {rows[-2]['score']:.4g} at 6  " in last
    assert [line["step"] for line in tracked if "validation/score" in line] == [2, 4, 6, 8]
    assert best_of_validation(run) == (
        f"best validation score {rows[1]['score']:.4g} at step 4: {run.validated}"
    )


def test_validation_changes_neither_theta_nor_what_is_said_of_a_run_without(tmp_path):
    weights, summaries = {}, {}
    for name, validation in (("with", SETTINGS.validation), ("without", Validation())):
        output = Output(run_dir=str(tmp_path / name), quiet=True)
        settings = dataclasses.replace(SETTINGS, validation=validation, output=output)
        assert meta_train(settings, QUIET) == 0
        run = RunFolder(tmp_path / name)
        for path in (run.theta, run.best):
            header, arrays = release.read(path)
            weights[name, path.name] = {k: v.tobytes() for k, v in arrays.items()}
            summaries[name, path.name] = header["summary"]
        assert run.validated.exists() == run.validation.exists() == (name == "with")
    for file in ("theta.safetensors", "best.safetensors"):
        assert weights["with", file] == weights["without", file]
        more = summaries["with", file].keys() - summaries["without", file].keys()
        assert more == {"validation", "validation_seconds", "validation_inner_steps"}
        assert summaries["with", file]["inner_steps"] == summaries["without", file]["inner_steps"]


def test_the_best_is_told_from_its_file_and_a_missing_one_is_said(ascended):
    told = best_of_validation(ascended)
    scores = release.summary(ascended.validated)["validation_scores"]
    assert told.startswith(f"best validation score {scores['score']:.4g} at step {scores['step']}:")
    assert best_of_validation(RunFolder(ascended.path / "none")).startswith("no theta had a")
