"""Comparisons with tuned baselines and controls."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from parabolas import KEY, nan_after, noisy, parabola

from l2o.evaluation import compare as module
from l2o.evaluation.baseline import Baseline, half_decades
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.compare import Rival, compare, summarise
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Curves, Trainer
from l2o.evaluation.trials import Trial
from l2o.evaluation.tuning import Tuning


def small_comparison(learned, task=None, **options):
    options = (
        dict(horizon=12, probe_every=3, num_seeds=8, num_random=0, baselines=("sgdm",)) | options
    )
    return compare(KEY, task or parabola(), learned, **options)


def test_a_row_says_how_learned_control_and_baselines_end():
    # At rate 1/h gradient descent is at the minimum after one step.
    found = small_comparison(
        optax.sgd(0.5),
        controls={"untrained": optax.sgd(0.005)},
        probe_every=1,
        baselines=("adam", "sgdm"),
    ).summary
    assert (found["task"], found["steps"], found["num_seeds"]) == ("parabola", 12, 8)
    assert found["learned_diverged"] == 0.0
    assert found["learned_final_loss"] < 1e-9
    assert found["best_baseline"] in ("adam", "sgdm")
    assert [b["name"] for b in found["baselines"]] == ["adam", "sgdm"]
    assert found["learned_test"]["x"]["median"] == pytest.approx(1.0)
    assert found["learned_valid"]["loss"]["median"] < 1e-9
    assert found["learned_test"]["loss"]["median"] == pytest.approx(1.0)
    assert np.median(found["learned_valid_by_seed"]["loss"]) < 1e-9
    (control,) = found["controls"]
    assert control["name"] == "untrained" and control["is_tuned"]
    # The best factor makes it gradient descent at 1/h, within what the grid resolves.
    assert control["hyperparameters"]["learning_rate"] == pytest.approx(100.0, rel=0.2)
    assert control["final_loss"] < 1e-9
    for entrant in (control, *found["baselines"]):
        by_seed = entrant["final_loss_by_seed"]
        assert len(by_seed) == len(entrant["speedup_by_seed"]) == 8
        assert entrant["final_loss"] == np.median(by_seed)
        assert entrant["final_loss_mean"] == pytest.approx(np.mean(by_seed))
        assert entrant["final_loss_worst_tenth"] == np.quantile(by_seed, 0.9)


def test_the_speed_up_is_over_the_setting_that_is_fastest_to_the_best_one_s_loss(monkeypatch):
    def at_the_end(config, horizon):
        """A step at the end of the run, to the minimum at rate 1/h."""
        last = config["horizon_fraction"] * horizon - 1.0
        return optax.sgd(lambda count: config["learning_rate"] * (count >= last))

    late = Baseline("late", "Late.", at_the_end, half_decades(-4, 3), is_scheduled=True)
    monkeypatch.setitem(BASELINES, "sgdm", late)
    learned = optax.sgd(lambda count: 0.5 * (count == 5))
    found = small_comparison(learned, horizon=20, probe_every=1, baselines=("sgdm",)).summary
    (row,) = found["baselines"]
    # It alone needs all 20 steps; told a fifth of them, it is there after 4. Learned needs 6.
    assert row["fastest_hyperparameters"]["horizon_fraction"] == 0.2
    assert max(row["steps_of_fastest"]) <= 5.0
    np.testing.assert_allclose(row["steps_of_learned"], 6.0, atol=1.0)
    assert 0.6 < found["speedup"] < 0.85
    assert row["reached"] == 1.0 and row["speedup_where_reached"] == found["speedup"]


def test_the_headline_is_over_whichever_baseline_is_first_at_the_best_ones_loss(monkeypatch):
    def once_at(step, rate):
        def make(config, horizon):
            del config, horizon
            return optax.sgd(lambda count: rate * (count == step))

        return Baseline("once", "One step.", make, (1.0,))

    # The first ends at the minimum, after 20 steps; the second nearly there, after 3.
    monkeypatch.setitem(BASELINES, "sgdm", once_at(19, 0.5))
    monkeypatch.setitem(BASELINES, "adam", once_at(2, 0.4999))
    learned = optax.sgd(lambda count: 0.5 * (count == 5))
    found = small_comparison(learned, horizon=20, probe_every=1, baselines=("adam", "sgdm")).summary
    assert found["best_baseline"] == "sgdm"
    _, best = found["baselines"]
    assert best["speedup"] == pytest.approx(20 / 6, rel=0.05)
    assert found["speedup"] == pytest.approx(3 / 6, rel=0.05)


def test_a_target_that_some_seeds_never_reach():
    task = noisy()
    found = small_comparison(optax.sgd(0.02), task, horizon=30, baselines=("sgdm",)).summary
    (row,) = found["baselines"]
    reached = np.array(row["speedup_by_seed"]) > 0
    assert row["reached"] == np.mean(reached) < 1.0
    assert [np.isinf(s) for s in row["steps_of_learned"]] == (~reached).tolist()
    where = row["speedup_where_reached"]
    assert where is None if not reached.any() else where > 0.0


def test_tuning_and_reporting_are_on_different_seeds(monkeypatch):
    starts = []
    train = Trainer.train
    monkeypatch.setattr(
        Trainer,
        "train",
        lambda self, settings, given, **kw: (
            starts.append(given) or train(self, settings, given, **kw)
        ),
    )
    small_comparison(optax.sgd(0.1), controls={"untrained": optax.sgd(0.1)})
    draws = {tuple(given.params["x"].tolist()) for given in starts}
    assert len(draws) == 3  # the search's, the finalists' and those that are reported on
    assert len({x for draw in draws for x in draw}) == sum(map(len, draws))


@pytest.mark.parametrize("name", ["adam", "momo_adam"])
def test_an_optimizer_under_two_names_is_no_faster_than_itself(name):
    """100 repetitions of 16 seeds, the two names on batches of their own: no speed-up is seen."""
    repetitions, seeds, horizon, task = 100, 16, 40, noisy()
    baseline = BASELINES[name]
    trainer = Trainer(task, lambda config: baseline.make(config, horizon), horizon=horizon)
    config = {**baseline.defaults, "learning_rate": 0.1}
    settings = {name: np.array([value]) for name, value in config.items()}
    starts = draw_starts(KEY, task, repetitions * seeds)
    again = starts._replace(key=jax.vmap(lambda key: jax.random.fold_in(key, 1))(starts.key))
    (one,) = trainer.train(settings, starts, splits=())
    (other,) = trainer.train(settings, again, splits=())
    assert not np.allclose(one.final_loss, other.final_loss)
    # Six curves of three rivals at that setting, of which tuning has chosen one.
    curves = []
    for fold in range(2, 7):
        keys = jax.vmap(lambda key, fold=fold: jax.random.fold_in(key, fold))(starts.key)
        curves += trainer.train(settings, starts._replace(key=keys), splits=())

    def part(curves, i):
        """A repetition's runs."""
        rows = slice(i * seeds, (i + 1) * seeds)
        return dataclasses.replace(
            curves, probe_loss=curves.probe_loss[rows], diverged=curves.diverged[rows]
        )

    holds, flatters = np.zeros(2), np.zeros(2)
    for i in range(repetitions):
        best, *others = (part(c, i) for c in (one, *curves))
        reported = zip((best, *others[1::2]), others[::2], strict=True)
        three = {
            str(j): Rival(by_hand(str(j), 1.0 + j, [9.0, 5.0 - j]), mine, fastest)
            for j, (mine, fastest) in enumerate(reported)
        }
        alone = {"0": Rival(by_hand("0", 1.0, [9.0, 5.0]), best, best)}
        for k, rivals in enumerate((alone, three)):
            row = summarise(part(other, i), rivals, set())
            assert row["best_baseline"] == "0" and len(row["speedup_by_seed"]) == 16
            holds[k] += row["speedup_low"] <= 1.0 <= row["speedup_high"]
            flatters[k] += row["speedup_low"] > 1.0
    # Where a fastest setting has noise of its own, not to reach L costs the learned optimizer more.
    assert holds[0] >= 93 and holds[1] >= (93 if name == "adam" else 70)
    assert np.all(flatters <= 3)


def by_hand(name: str, median: float, curve: list[float]) -> Tuning:
    """What a search is said to have found."""
    found = Trial({"learning_rate": 1.0}, np.full(8, median), 0.0, np.array(curve))
    return Tuning(name, True, [found], found, found, found, False)


def test_the_best_baseline_is_told_by_the_finalists_seeds_and_the_fastest_by_tuning_seeds():
    steps = np.array([0, 10, 20])

    def curves(first: float, second: float, last: float = 0.0) -> Curves:
        probes = np.tile([first, second, last], (8, 1))
        return Curves(steps, probes, probes, np.zeros(8, bool), {}, {"loss": probes[:, -1]}, 1.0)

    def rival(name, search, again, reported, tuned_curve, fastest) -> Rival:
        first = Trial({"learning_rate": 1.0}, np.full(8, search), 0.0, np.array(tuned_curve))
        second = dataclasses.replace(first, final_loss=np.full(8, again))
        found = Tuning(name, True, [first], first, second, first, False)
        return Rival(found, reported, fastest)

    late, later = curves(16.0, 8.0, 1.0), curves(16.0, 8.0, 4.0)
    quick = curves(16.0, 2.0, 0.9)
    found = [
        # Lowest in the search, and on the reporting seeds, but not on those of the finalists.
        rival("lucky", 0.1, 3.0, curves(16.0, 8.0, 0.1), [16.0, 8.0, 2.0], later),
        rival("best", 1.0, 1.0, late, [16.0, 8.0, 1.0], curves(16.0, 4.0, 1.0)),
        # First at 1 on the tuning seeds, late on the reporting seeds.
        rival("quick", 2.0, 2.0, quick, [16.0, 0.5, 2.0], quick),
        rival("control", 0.0, 0.0, curves(16.0, 0.0), [16.0, 0.0, 0.0], curves(16.0, 0.0)),
    ]
    rivals = {rival.tuning.name: rival for rival in found}
    row = summarise(curves(16.0, 1.0, 1.0), rivals, {"control"})
    assert row["best_baseline"] == "best"
    steps_of_quick = 10.0 + 10.0 * np.log(2.0) / np.log(2.0 / 0.9)
    assert row["speedup"] == pytest.approx(steps_of_quick / 10.0)
    assert row["baselines"][1]["speedup"] == pytest.approx(20.0 / 10.0)


def test_the_targets_of_an_entrant_have_a_floor(monkeypatch):
    at_once = Baseline("SGD", "One step.", lambda config, horizon: optax.sgd(0.5), (1.0,))
    monkeypatch.setitem(BASELINES, "sgdm", at_once)
    found = small_comparison(optax.sgd(0.4999), probe_every=1).summary
    (row,) = found["baselines"]
    assert row["final_loss"] < 1e-12
    assert row["reached"] == 1.0 and max(row["steps_of_learned"]) < 3.0


@pytest.mark.parametrize(
    "control",
    [
        lambda *, horizon: optax.sgd(optax.warmup_cosine_decay_schedule(0.1, 0.2, 2, horizon)),
        lambda *, horizon: optax.sgd(0.1 / np.log(horizon)),
        lambda *, horizon: optax.sgd(0.1 / len(range(horizon))),
        lambda *, horizon: optax.sgd(lambda count: 0.1 if count < horizon else 0.0),
    ],
)
def test_a_control_that_needs_its_horizon_as_a_number_is_told_before_anything_is_trained(
    control, monkeypatch
):
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trains"))
    with pytest.raises(ValueError, match=r"`controls` must be .*; got late, .* late\(horizon=12\)"):
        small_comparison(optax.sgd(0.1), controls={"late": control})


def test_nothing_of_the_learned_optimizer_is_tuned(monkeypatch):
    calls = []
    tune_one = module.tune_one
    monkeypatch.setattr(
        module, "tune_one", lambda s, **options: calls.append(s.name) or tune_one(s, **options)
    )
    small_comparison(optax.sgd(0.1), controls={"untrained": optax.sgd(0.1)})
    assert calls == ["sgdm", "untrained"]


def test_an_optimizer_that_returns_nan_is_reported_as_diverged_everywhere():
    found = small_comparison(nan_after(0)).summary
    assert found["learned_diverged"] == 1.0
    assert found["learned_final_loss"] == 1e3
    assert found["speedup"] == found["speedup_high"] == 0.0
    assert found["reached"] == 0.0 and found["speedup_where_reached"] is None
    assert np.isnan(found["learned_test"]["x"]["median"])


def test_a_seen_task_is_refused_or_marked():
    with pytest.raises(ValueError, match="`task` must not be one that was meta-trained on"):
        small_comparison(optax.sgd(0.1), seen={"parabola"})
    seen = small_comparison(optax.sgd(0.1), seen={"parabola"}, allow_seen=True).summary
    assert seen["seen"] is True


def test_mistakes_are_told_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("trains"))
    tx = optax.sgd(jnp.float32(0.1))
    with pytest.raises(ValueError, match="`controls` must have names of their own; got adam"):
        small_comparison(tx, controls={"adam": optax.adam(1.0)})
    with pytest.raises(ValueError, match=r"`num_seeds` must be at least 8, .*; got 7\. Try"):
        small_comparison(tx, num_seeds=7)
    with pytest.raises(ValueError, match="`baselines` must be among"):
        small_comparison(tx, baselines=("amad",))
    with pytest.raises(ValueError, match=r"`learning_rates` must be .* at least two"):
        small_comparison(tx, learning_rates=(0.1,))
