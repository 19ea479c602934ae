"""Workers that share a search on disk: claims, scores, and what samplers are told."""

import contextlib
import itertools

import pytest
from optuna.trial import TrialState

from l2o.search.space import Setting
from l2o.search.study import Study, open_folder

SPACE = (Setting("std", (0.01, 1.0), True), Setting("shaping", ("none", "sign"), False))
START = {"std": 0.1, "shaping": "none"}


def make_study(folder, **changes) -> Study:
    open_folder(folder, {"over": "std"})
    given = {
        **{"folder": folder, "space": SPACE, "start": START, "rungs": (10, 30), "eta": 2},
        **{"budget": 100.0, "sampler": "tpe", "seed": 0, "cost": lambda values: 1},
    }
    return Study(**given | changes)


def step(study: Study, score: float) -> None:
    with study.claimed() as claim:
        assert claim is not None
        study.finish(claim, score)


def test_two_workers_never_have_one_trial(tmp_path):
    study = make_study(tmp_path)
    with contextlib.ExitStack() as stack:
        claims = [stack.enter_context(study.claimed()) for _ in range(3)]
        assert [claim.trial.number for claim in claims] == [0, 1, 2]
        assert claims[0].trial.values == START
        assert claims[1].trial.values != claims[2].trial.values
        assert not study.is_over()


def test_a_trial_that_a_worker_has_left_comes_first(tmp_path):
    study = make_study(tmp_path)
    step(study, 0.5)
    with pytest.raises(KeyError), study.claimed() as claim:
        left = claim.trial
        raise KeyError  # as if it was killed
    with study.claimed() as claim:
        assert claim.trial == left and claim.run_dir.name == "001"
        with study.claimed() as other:
            assert other.trial.number == 2


def test_a_search_to_its_end(tmp_path):
    study = make_study(tmp_path)
    for score in itertools.count():
        with study.claimed() as claim:
            if claim is None:
                break
            study.finish(claim, score / 100)
    trials = study.trials()
    assert study.is_over() and sum(trial.budget_used for trial in trials) == 100
    # Scores rise with time, so each trial that is second at the rung goes on at once.
    assert any(30 in trial.scores for trial in trials)
    assert all(trial.target in trial.scores for trial in trials)


def test_a_trial_that_failed_is_left_alone(tmp_path):
    study = make_study(tmp_path, budget=60.0)
    with study.claimed() as claim:
        study.fail(claim, "no finite loss")
    step(study, 0.5)
    assert [trial.error for trial in study.trials()] == ["no finite loss", ""]
    step(study, 0.6)
    assert all(trial.number > 0 for trial in study.trials() if trial.scores)


def test_draws_depend_on_the_seed_and_the_trials_alone(tmp_path):
    drawn = []
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        study = make_study(tmp_path / folder, seed=seed, budget=300.0)
        for i in range(12):
            step(study, 0.01 * i)
        drawn.append([trial.values for trial in study.trials()])
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_samplers_are_told(tmp_path):
    study = make_study(tmp_path, start={"std": 5.0, "shaping": "none"}, budget=40.0)
    told = lambda: [study._frozen(trial) for trial in study.trials()]
    states = lambda: [trial.state for trial in told()]
    with study.claimed() as claim:
        assert states() == [TrialState.RUNNING]
        study.finish(claim, 0.5)
    assert states() == [TrialState.PRUNED]
    step(study, 0.7)
    assert states() == [TrialState.PRUNED, TrialState.PRUNED]
    step(study, 0.8)
    assert states() == [TrialState.PRUNED, TrialState.COMPLETE]
    assert [trial.intermediate_values for trial in told()] == [{10: 0.5}, {10: 0.7, 30: 0.8}]
    # A value outside of the range, where the first trial may be, is left out.
    assert set(study._frozen(study.trials()[0]).params) == {"shaping"}


@pytest.mark.parametrize("has_score", [False, True])
def test_samplers_are_told_that_a_trial_that_failed_is_the_worst(tmp_path, has_score):
    study = make_study(tmp_path, budget=60.0)
    if has_score:
        step(study, 0.5)
        step(study, 0.9)  # whose trial goes on, and fails
    with study.claimed() as claim:
        study.fail(claim, "no finite loss")
    failed = study._frozen(study.trials()[claim.trial.number])
    assert study.trials()[claim.trial.number].scores == ({10: 0.9} if has_score else {})
    assert failed.state == TrialState.PRUNED and failed.intermediate_values == {10: 0.0}


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_samplers_draw_within_the_space(tmp_path, name):
    study = make_study(tmp_path, sampler=name, start=None, budget=400.0)
    for i in range(15):
        step(study, 0.01 * i)
    for trial in study.trials():
        assert all(setting.holds(trial.values[setting.name]) for setting in SPACE)


def test_a_model_goes_where_scores_are_high(tmp_path):
    """The best std is 0.7; the last 20 of 40 trials are nearer to it than random ones."""
    errors = {"tpe": 0.0, "random": 0.0}
    for name, seed in itertools.product(errors, range(3)):
        folder = tmp_path / f"{name}{seed}"
        study = make_study(folder, start=None, rungs=(10,), budget=400.0, sampler=name, seed=seed)
        for _ in range(40):
            with study.claimed() as claim:
                study.finish(claim, -abs(claim.trial.values["std"] - 0.7))
        errors[name] += sum(abs(trial.values["std"] - 0.7) for trial in study.trials()[20:])
    assert errors["tpe"] < 0.7 * errors["random"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "config.json of something else"),
        ("[", "a damaged config.json"),
        ('{"over": "window"}', 'another search; got .*over="window" .now "std"'),
    ],
)
def test_other_folders(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        open_folder(tmp_path, {"over": "std"})


def test_a_damaged_trial(tmp_path):
    study = make_study(tmp_path)
    (tmp_path / "trials" / "000.json").write_text("{}")
    with pytest.raises(ValueError, match=r"`out` must hold a search; got .*000.json"):
        study.trials()
