"""Suites that are run: what is kept, who is refused."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from suite.bowls import bowl, entry

from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.seen import names_and_signatures
from l2o.evaluation.statistics import first_reach
from l2o.evaluation.training import Trainer
from l2o.optimizers.learnable import learnable_sgd
from l2o.suite.entrant import Entrant, as_it_is, find_entrants, learned_entrant
from l2o.suite.run import Budget, TaskRunner, check_data, run_suite
from l2o.suite.suite_task import SuiteTask
from l2o.task import TaskFamily

BUDGET = Budget(num_seeds=8, num_random=0, fewest_rates=9, is_quick=True)
SGDM = Entrant("sgdm", BASELINES["sgdm"])


def learned(**summary) -> Entrant:
    lopt = learnable_sgd(0.25)
    return learned_entrant("ours", lopt, lopt.init(jax.random.key(0)), {"task": "bowls"} | summary)


def run(folder, entrants, suite=None, **options):
    options = {"reference": SGDM, "budget": BUDGET, "folder": folder, **options}
    return list(run_suite(suite or [entry()], entrants, **options))


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*.json")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("suite")
    return folder, run(folder, [learned()])


def test_every_optimizer_runs_on_every_task(finished):
    _, (reference, ours) = finished
    assert (reference.entrant, ours.entrant) == ("sgdm", "ours")
    # Steps of 0.25 halve the distance to the minimum, and quarter its square.
    expected = 3.0 * 0.25**ours.best.steps + 0.01
    np.testing.assert_allclose(ours.best.train, np.tile(expected, (8, 1)), rtol=1e-4)
    np.testing.assert_allclose(ours.best.valid, 2.0 * ours.best.train, rtol=1e-4)
    np.testing.assert_allclose(ours.best.test_end["loss"], ours.best.train[:, -1] + 1.0, rtol=1e-4)
    assert not ours.is_tuned and ours.num_settings == 1 and reference.num_settings >= 12
    assert ours.num_parameters == 3 and ours.state_per_parameter == 0.0
    assert reference.state_per_parameter == 1.0  # a trace
    assert ours.seconds_per_step > 0 and ours.relative_cost > 0


def test_what_is_there_is_not_run_again_and_a_newcomer_trains_alone(finished, monkeypatch):
    folder, (reference, ours) = finished
    before = files(folder)
    trained = []
    train = Trainer.train
    monkeypatch.setattr(
        Trainer, "train", lambda self, *args, **kw: trained.append(1) or train(self, *args, **kw)
    )
    again = run(folder, [learned()])
    assert not trained and files(folder) == before
    assert [r.seconds for r in again] == [reference.seconds, ours.seconds]
    assert [r.is_kept for r in (reference, ours, *again)] == [False, False, True, True]
    np.testing.assert_array_equal(again[1].best.train, ours.best.train)

    half = Entrant("half", as_it_is("half", "SGD.", lambda horizon: optax.sgd(0.125)))
    assert [r.entrant for r in run(folder, [learned(), half])] == ["sgdm", "ours", "half"]
    assert len(trained) == 1
    assert before.items() <= files(folder).items()


def test_another_optimizer_of_the_same_name_is_run(finished, tmp_path):
    folder, (_, ours) = finished
    other = learnable_sgd(0.1)
    entrant = learned_entrant("ours", other, other.init(jax.random.key(0)), {})
    for name, content in files(folder).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (_, found) = run(tmp_path, [entrant])
    assert np.all(found.best.train[:, -1] > ours.best.train[:, -1])


@pytest.mark.slow
def test_a_suite_that_was_stopped_ends_alike(tmp_path, finished):
    folder, _ = finished
    for result in run_suite([entry()], [learned()], reference=SGDM, budget=BUDGET, folder=tmp_path):
        del result
        break  # stopped after the reference
    run(tmp_path, [learned()])

    def timeless(name, content):
        found = json.loads(content)
        if "result" in found:
            for field in ("seconds", "seconds_per_step", "relative_cost"):
                del found["result"][field]
        return found

    one, other = ({k: timeless(k, v) for k, v in files(f).items()} for f in (folder, tmp_path))
    assert {k: one[k] for k in other} == other


def test_a_task_whose_family_and_data_were_meta_trained_on_is_refused_or_marked(tmp_path, finished):
    folder, _ = finished
    larger = dataclasses.replace(bowl("larger", dim=5), family="bowls")
    signatures = names_and_signatures([larger])[1:]  # no names, and of other shapes
    for how in ("trained_on", "validated_on"):
        seen = learned(**{how: signatures})
        with pytest.raises(ValueError, match=r"`optimizer` must not have been meta-trained on, or"):
            run(tmp_path, [seen])
        assert not list(tmp_path.iterdir())
        (_, ours) = run(folder, [seen], allow_seen=True)
        assert ours.is_seen


def test_missing_data_are_named_with_the_command_that_fetches_them(monkeypatch, tmp_path):
    monkeypatch.setenv("L2O_DATA", str(tmp_path))
    suite = [entry("a"), entry("b", dataset="mnist"), entry("c", dataset="emoji")]
    with pytest.raises(ValueError, match=r"got b and no mnist in .* l2o data fetch mnist emoji"):
        check_data(suite)
    check_data(suite[:1])


def test_optimizers_are_found_by_name_path_or_label():
    digits, mine, adam = find_entrants(["digits", "mine=adam", "adam"])
    assert digits.is_learned and digits.families == ("digits_mlp",)
    assert digits.seen and not digits.baseline.is_tuned
    assert (mine.name, mine.baseline) == ("mine", adam.baseline)
    for words, message in (
        (["adam", "adam"], "must name each once; got adam twice"),
        (["adma"], "must be a known name; got adma. Try adam"),
        (["math:pi"], "must be a Baseline or an Entrant; got math:pi, which is float"),
    ):
        with pytest.raises(ValueError, match=f"`optimizer` {message}"):
            find_entrants(words)


def test_names_that_differ_in_a_slash_have_files_of_their_own(tmp_path, finished):
    folder, _ = finished
    slow, fast = (
        Entrant(name, as_it_is(name, "SGD.", lambda horizon, rate=rate: optax.sgd(rate)))
        for name, rate in (("x/y", 0.01), ("x_y", 0.2))
    )
    for _ in range(2):
        _, one, other = run(folder, [slow, fast])
        assert (one.entrant, other.entrant) == ("x/y", "x_y")
        assert np.all(one.best.train[:, -1] > other.best.train[:, -1])


def test_a_result_is_of_its_search_its_task_and_its_metrics(finished):
    """Each of these changes what is done, so a result that is there is not taken for it."""
    folder, _ = finished
    tuned = Entrant("mine", dataclasses.replace(SGDM.baseline, learning_rates=(0.01, 0.03)))
    other_rates = Entrant("mine", dataclasses.replace(SGDM.baseline, learning_rates=(0.1, 0.3)))
    runner = TaskRunner(entry(), bowl(), BUDGET, folder, 0)
    measured = dataclasses.replace(bowl(), metrics=lambda params, batch, instance: {"one": 1.0})

    def identity(runner=runner, entrant=tuned, target=0.5):
        return runner._identity(entrant, runner._prepare(entrant), target)

    first = identity()
    assert identity() == first
    changed = {
        "searched": identity(entrant=other_rates),
        "target": identity(target=0.6),
        "measures": identity(TaskRunner(entry(), measured, BUDGET, folder, 0)),
        "solved": identity(TaskRunner(entry(solved=0.5), bowl(), BUDGET, folder, 0)),
        "budget": identity(
            TaskRunner(entry(), bowl(), dataclasses.replace(BUDGET, num_random=4), folder, 0)
        ),
        "reporting_starts": identity(TaskRunner(entry(), bowl(), BUDGET, folder, 1)),
    }
    for name, found in changed.items():
        assert found[name] != first[name], name


def test_the_fastest_setting_is_first_at_the_references_loss_on_tuning_seeds(tmp_path):
    runner = TaskRunner(entry(), bowl(), BUDGET, tmp_path, 0)
    for target in (2.0, 0.05):
        search = runner._prepare(Entrant("mine", BASELINES["sgdm"]))
        _, _, fastest, tuning = runner._settle(search, target)
        assert tuning is not None
        steps = search.trials.steps
        by_rate = {
            tuple(t.config.items()): first_reach(steps, t.curve, target) for t in tuning.trials
        }
        assert by_rate[tuple(fastest.items())] == min(by_rate.values())


def test_costs_are_those_of_a_step_over_one_of_sgd(monkeypatch, tmp_path):
    runner = TaskRunner(entry(), bowl(), BUDGET, tmp_path, 0)
    runner.sgd_timer = lambda: 2.0
    trainer = runner._prepare(SGDM).trials.trainer
    monkeypatch.setattr(Trainer, "timer", lambda *args: lambda: 6.0)
    setting = {"learning_rate": 0.1, **SGDM.baseline.defaults}
    assert runner._cost(trainer, setting) == {"seconds_per_step": 6.0, "relative_cost": 3.0}


def test_tasks_that_cannot_be_scored_are_one_line(tmp_path):
    flat = dataclasses.replace(bowl("flat"), loss=lambda params, batch, instance: jnp.float32(1.0))
    zero = dataclasses.replace(
        bowl("zero"), loss=lambda params, batch, instance: jnp.sum(params["x"]) * 0.0
    )
    sinks = dataclasses.replace(
        bowl("sinks"),
        loss=lambda params, batch, instance: (
            bowl().loss(params, batch, instance) - 8.0 * (batch[0] == 2.0)
        ),
    )
    for task, message in (
        (sinks, r"validation loss begins above zero; got sinks, where one begins at -1\.9"),
        (bowl("high", cap=3.0), r"loss begins below `loss_cap`; got high, .* the cap is 3"),
        (flat, "depends on the parameters; got flat, where it is constant at 1 about a start"),
        (zero, r"begins above zero; got zero, where one begins at 0\.0"),
    ):
        suite = [SuiteTask(task.name, lambda t=task: t, kind="function", horizon=3, solved=0.1)]
        with pytest.raises(ValueError, match=message):
            run(tmp_path, [], suite)


def test_two_optimizers_of_one_name_are_refused_and_the_reference_runs_once(tmp_path, finished):
    folder, _ = finished
    assert [r.entrant for r in run(folder, [SGDM])] == ["sgdm"]
    other = dataclasses.replace(learned(), name="sgdm")
    with pytest.raises(ValueError, match="`entrants` must have names of their own; got sgdm twice"):
        run(tmp_path, [other])


def test_no_run_is_tuned_on_a_seed_that_is_reported(tmp_path):
    runner = TaskRunner(entry(), bowl(), BUDGET, tmp_path, 0)
    tuning, reported = (
        {key.tobytes() for key in np.asarray(jax.random.key_data(starts.key))}
        for starts in (runner.tuning_starts, runner.starts)
    )
    assert len(tuning) == 16 and len(reported) == 8 and not tuning & reported


def test_a_result_is_of_its_horizon(tmp_path):
    """Both horizons are probed at every step, so their programs are the same."""
    plain = Entrant("plain", as_it_is("plain", "", lambda horizon: optax.sgd(0.1)))
    for horizon in (6, 7):
        found = run(tmp_path, [plain], [entry(horizon=horizon)])
        assert [r.is_kept for r in found] == [False, False]
        assert found[1].best.steps[-1] == horizon


def test_seen_is_told_by_the_tasks_own_name(tmp_path):
    """A release file of before there were signatures knows names alone."""
    suite = [SuiteTask("one", bowl, kind="function", horizon=6, solved=0.02)]
    named = learned(trained_on=["bowl"])
    with pytest.raises(ValueError, match="by one's"):
        run(tmp_path, [named], suite)
    marked = run(tmp_path, [named], suite, allow_seen=True)
    assert [r.is_seen for r in marked] == [False, True]
    assert not run(tmp_path, [learned(trained_on=["one"])], suite)[1].is_seen


def test_a_family_in_place_of_a_task_is_one_line(tmp_path):
    family = TaskFamily("bowls", train=(bowl(),), evaluation=())
    wrong = SuiteTask("wrong", lambda: family, kind="function", horizon=3, solved=0.1)  # pyright: ignore
    with pytest.raises(ValueError, match=r"`make` of suite task wrong must give an l2o\.Task"):
        run(tmp_path, [], [wrong])
