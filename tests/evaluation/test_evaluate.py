import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from l2o.evaluation.baselines import BASELINES, LEARNING_RATES, tune
from l2o.evaluation.compare import compare
from l2o.evaluation.evaluate import draw_starts, evaluate
from l2o.optimizers.learnable import learnable_sgd
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.rng import TAGS, stream
from l2o.task import Task
from l2o.tasks.digits import digits_mlp

KEY = stream(0, "evaluation")
SEEDS = dict(num_seeds=3)


def parabola(cap: float = 1e3) -> Task:
    """0.5 h (x - 1)², h = 2 and a start at x = 3 + seed's noise; nothing random in a batch."""
    return Task(
        name="parabola",
        sample=lambda key: {"curvature": jnp.float32(2.0)},
        init=lambda key, instance: {"x": 3.0 + jax.random.uniform(key)},
        batch=lambda key, instance, data, split: jnp.float32(split == "test"),
        loss=lambda params, shift, instance: (
            0.5 * instance["curvature"] * jnp.square(params["x"] - 1.0) + shift
        ),
        loss_cap=cap,
        metrics=lambda params, shift, instance: {"x": params["x"]},
    )


def noisy(std: float = 0.3) -> Task:
    """The parabola with curvatures that differ, and a minimum that a batch shifts."""
    return dataclasses.replace(
        parabola(),
        name="noisy",
        sample=lambda key: {"curvature": 1.0 + jax.random.uniform(key)},
        batch=lambda key, instance, data, split: std * jax.random.normal(key),
        loss=lambda params, shift, instance: (
            0.5 * instance["curvature"] * jnp.square(params["x"] - 1.0 - shift)
        ),
    )


def nan_after(steps: int) -> optax.GradientTransformation:
    """Gradient descent whose updates are NaN once `steps` have been taken."""
    return optax.chain(
        optax.sgd(0.1),
        optax.scale_by_schedule(lambda count: jnp.where(count < steps, 1.0, jnp.nan)),
    )


def test_sgd_agrees_with_a_loop_by_hand():
    task = parabola()
    rate, horizon = 0.05, 7
    curves = evaluate(KEY, task, {"sgd": optax.sgd(rate)}, horizon=horizon, probe_every=3, **SEEDS)
    assert curves["sgd"].steps.tolist() == [0, 3, 6, 7]
    starts = np.asarray(draw_starts(KEY, task, 3).params["x"])
    for seed, x in enumerate(starts.astype(np.float64)):
        losses = []
        for _ in range(horizon):
            losses.append((x - 1.0) ** 2)
            x -= rate * 2.0 * (x - 1.0)
        losses.append((x - 1.0) ** 2)
        np.testing.assert_allclose(curves["sgd"].train_loss[seed], losses[:-1], rtol=1e-6)
        np.testing.assert_allclose(
            curves["sgd"].probe_loss[seed], [losses[i] for i in (0, 3, 6, 7)], rtol=1e-6
        )
        np.testing.assert_allclose(curves["sgd"].final_loss[seed], losses[-1], rtol=1e-6)
        np.testing.assert_allclose(curves["sgd"].test["loss"][seed], losses[-1] + 1.0, rtol=1e-6)
        np.testing.assert_allclose(curves["sgd"].test["x"][seed], x, rtol=1e-6)
    assert not curves["sgd"].diverged.any()
    assert curves["sgd"].seconds_per_step > 0


def test_every_optimizer_sees_the_same_starts_and_batches():
    task = noisy()
    optimizers = {"a": optax.adam(0.1), "still": optax.sgd(0.0), "b": optax.adam(0.1)}
    curves = evaluate(KEY, task, optimizers, horizon=20, probe_every=5, **SEEDS)
    for field in ("probe_loss", "train_loss", "final_loss", "diverged"):
        np.testing.assert_array_equal(getattr(curves["a"], field), getattr(curves["b"], field))
    np.testing.assert_array_equal(curves["a"].probe_loss[:, 0], curves["still"].probe_loss[:, 0])
    np.testing.assert_array_equal(curves["a"].train_loss[:, 0], curves["still"].train_loss[:, 0])
    # Probes are fixed; batches are drawn anew at every step, and differ between seeds.
    assert np.ptp(curves["still"].probe_loss, axis=1) == pytest.approx(0.0)
    assert np.all(np.std(curves["still"].train_loss, axis=1) > 0)
    assert len(set(curves["still"].probe_loss[:, 0])) == 3


def test_a_seed_is_the_same_whatever_the_number_of_seeds_and_probes():
    task = noisy()
    few = evaluate(KEY, task, {"a": optax.sgd(0.1)}, horizon=12, num_seeds=2, probe_every=12)["a"]
    many = evaluate(KEY, task, {"a": optax.sgd(0.1)}, horizon=12, num_seeds=5, probe_every=5)["a"]
    np.testing.assert_allclose(few.final_loss, many.final_loss[:2], rtol=1e-5)
    np.testing.assert_allclose(few.train_loss, many.train_loss[:2], rtol=1e-5)


def test_probes_default_to_fifty_and_always_end_with_the_run():
    curves = evaluate(KEY, parabola(), {"a": optax.sgd(0.1)}, horizon=105, num_seeds=1)["a"]
    assert curves.steps.tolist() == [*range(0, 105, 2), 105]


def test_a_function_of_the_horizon_and_a_loss_driven_design_are_optimizers():
    lopt = nominal_mlp()
    theta = lopt.init(jax.random.key(0))
    sgd = learnable_sgd(0.05)
    optimizers = {
        "learned": partial(lopt.transform, theta),
        "learnable_sgd": partial(sgd.transform, sgd.init(jax.random.key(0))),
        "sgd": optax.sgd(0.05),
    }
    curves = evaluate(KEY, parabola(), optimizers, horizon=10, **SEEDS)
    assert np.all(curves["learned"].final_loss < curves["learned"].probe_loss[:, 0])
    np.testing.assert_allclose(
        curves["learnable_sgd"].probe_loss, curves["sgd"].probe_loss, rtol=1e-5
    )


def test_data_reaches_the_compiled_functions_as_an_argument():
    def batch(key, instance, data, split):
        assert isinstance(data, jax.core.Tracer | jax.ShapeDtypeStruct)
        return data[int(split == "test")]

    task = dataclasses.replace(parabola(), data=jnp.arange(2.0), batch=batch)
    kept = evaluate(KEY, parabola(), {"a": optax.sgd(0.05)}, horizon=5, **SEEDS)["a"]
    moved = evaluate(KEY, task, {"a": optax.sgd(0.05)}, horizon=5, **SEEDS)["a"]
    np.testing.assert_allclose(kept.probe_loss, moved.probe_loss, rtol=1e-6)
    np.testing.assert_allclose(kept.test["loss"], moved.test["loss"], rtol=1e-6)


def test_diverged_runs_count_as_the_cap_and_none_is_dropped():
    optimizers = {
        "nan": nan_after(4),
        "explodes": optax.sgd(10.0),
        "fine": optax.sgd(0.1),
    }
    curves = evaluate(KEY, parabola(cap=50.0), optimizers, horizon=8, probe_every=4, **SEEDS)
    for name in ("nan", "explodes"):
        assert curves[name].final_loss.tolist() == [50.0] * 3
        assert curves[name].diverged.all()
        assert curves[name].test["loss"].tolist() == [50.0] * 3
    assert np.all(curves["nan"].probe_loss[:, 1] < 50.0)
    assert not curves["fine"].diverged.any()


def test_a_task_without_a_cap_still_counts_divergence_as_a_finite_loss():
    curves = evaluate(KEY, parabola(cap=np.inf), {"nan": nan_after(0)}, horizon=2, **SEEDS)
    assert curves["nan"].diverged.all()
    assert np.all(np.isfinite(curves["nan"].final_loss))


def test_an_image_task_reports_its_metrics_on_the_test_split():
    task = digits_mlp().evaluation[0]
    curves = evaluate(KEY, task, {"adam": optax.adam(1e-2)}, horizon=60, num_seeds=2)["adam"]
    assert set(curves.test) == {"loss", "accuracy", "macro_f1"}
    assert np.all(curves.test["accuracy"] > 0.6)
    assert np.all(curves.final_loss < curves.probe_loss[:, 0])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(horizon=0), "`horizon` must be at least 1; got 0. Try"),
        (dict(num_seeds=0), "`num_seeds` must be at least 1; got 0. Try"),
        (dict(probe_every=0), "`probe_every` must be between 1 and horizon=5; got 0. Try"),
        (dict(probe_every=6), "`probe_every` must be between 1 and horizon=5; got 6. Try"),
        (dict(seen={"parabola"}), "`task` must not be one that was meta-trained on; got parabola"),
    ],
)
def test_bad_arguments(wrong, message):
    sizes = dict(horizon=5, num_seeds=2) | wrong
    with pytest.raises(ValueError, match=message):
        evaluate(KEY, parabola(), {"a": optax.sgd(0.1)}, **sizes)


def test_streams_of_meta_training_and_evaluation_are_disjoint():
    assert len(set(TAGS.values())) == len(TAGS)
    keys = {
        tuple(jax.random.key_data(stream(seed, purpose)).tolist())
        for seed in range(50)
        for purpose in TAGS
    }
    assert len(keys) == 50 * len(TAGS)
    # The starts of evaluation, too, hold no key of meta-training's first draws.
    drawn = draw_starts(stream(0, "evaluation"), parabola(), 8).key
    other = draw_starts(stream(0, "meta_training"), parabola(), 8).key
    rows = np.concatenate([jax.random.key_data(drawn), jax.random.key_data(other)])
    assert len(np.unique(rows, axis=0)) == 16


def test_the_grid_is_nine_half_decades():
    np.testing.assert_allclose(LEARNING_RATES, 10.0 ** np.arange(-4.0, 0.5, 0.5))


def test_tuning_picks_the_rate_that_brute_force_picks():
    task, rates = noisy(), (0.03, 0.3, 3.0)
    tunings = tune(KEY, task, horizon=30, learning_rates=rates, baselines=tuple(BASELINES), **SEEDS)
    for name, baseline in BASELINES.items():
        losses = [
            evaluate(KEY, task, {"a": baseline(rate, 30)}, horizon=30, **SEEDS)["a"].final_loss
            for rate in rates
        ]
        np.testing.assert_allclose(tunings[name].final_loss, losses, rtol=1e-3, atol=1e-6)
        assert tunings[name].learning_rate == rates[int(np.argmin(np.median(losses, axis=1)))]
    assert tunings["adam"].learning_rate == 0.3
    assert not tunings["adam"].at_grid_edge


def test_tuning_says_when_the_best_rate_is_at_the_edge_of_the_grid():
    tunings = tune(KEY, parabola(), horizon=5, learning_rates=(1e-4, 1e-3), **SEEDS)
    assert all(t.at_grid_edge and t.learning_rate == 1e-3 for t in tunings.values())
    assert tunings["adam"].label == "adam lr=0.001"


def test_rates_that_diverge_lose_to_those_that_do_not():
    tunings = tune(KEY, parabola(cap=8.0), horizon=3, learning_rates=(0.1, 100.0), **SEEDS)
    assert tunings["adam"].diverged.mean(axis=1).tolist() == [0.0, 1.0]
    assert tunings["adam"].final_loss[1].tolist() == [8.0] * 3
    assert tunings["adam"].learning_rate == 0.1


@pytest.mark.parametrize("rates", [(), (0.0, 1.0), (1.0, 0.1), (-1.0,)])
def test_bad_learning_rates(rates):
    with pytest.raises(ValueError, match="`learning_rates` must be positive and increasing; got"):
        tune(KEY, parabola(), horizon=2, learning_rates=rates, **SEEDS)


def small_comparison(learned, task=None, **options):
    options = dict(horizon=12, probe_every=3, learning_rates=(1e-2, 1e-1, 1.0)) | options
    return compare(KEY, task or parabola(), learned, num_seeds=3, **options)


def test_the_speed_up_over_a_baseline_that_crawls_is_the_number_of_its_steps():
    # At rate 1/h gradient descent is at the minimum after one step. At these rates Adam falls
    # all the time, so that it takes all twelve steps to its own final loss.
    found = small_comparison(
        optax.sgd(0.5),
        controls={"untrained": optax.sgd(0.0)},
        probe_every=1,
        learning_rates=(0.001, 0.01, 0.1),
    ).summary
    assert found["task"] == "parabola"
    assert found["steps"] == 12
    assert found["diverged"] == 0.0
    assert found["learned_final_loss"] < 1e-9 < found["best_baseline_final_loss"]
    assert [found[f"speedup{end}"] for end in ("", "_low", "_high")] == [12.0, 12.0, 12.0]
    assert found["best_baseline"] == "adam lr=0.1"
    assert [b["name"] for b in found["baselines"]] == ["adam lr=0.1", "adam_cosine lr=0.1"]
    assert [b["speedup"] for b in found["baselines"]] == [12.0, 12.0]
    assert all(b["at_grid_edge"] for b in found["baselines"])
    assert found["learned_test_x"] == pytest.approx(1.0)
    (control,) = found["controls"]
    assert control["name"] == "untrained"
    assert 4.0 <= control["final_loss"] <= 9.0


def test_a_baseline_compared_with_itself_is_a_draw():
    task = noisy()
    again = small_comparison(partial(cosine, 0.1), task, learning_rates=(0.1,)).summary
    (row,) = [b for b in again["baselines"] if b["name"].startswith("adam_cosine")]
    assert (row["speedup"], row["speedup_low"], row["speedup_high"]) == pytest.approx((1, 1, 1))
    assert again["learned_final_loss"] == pytest.approx(row["final_loss"])


def cosine(rate, *, horizon):
    return BASELINES["adam_cosine"](rate, horizon)


def test_a_comparison_tunes_on_other_seeds_than_it_reports_on(monkeypatch):
    keys = []
    for name, function in {"tune": tune, "evaluate": evaluate}.items():
        record = lambda key, *args, f=function, **kwargs: (
            keys.append(key) or f(key, *args, **kwargs)
        )
        monkeypatch.setattr(f"l2o.evaluation.compare.{name}", record)
    small_comparison(optax.sgd(0.1))
    draws = [draw_starts(k, parabola(), 16).params["x"].tolist() for k in keys]
    assert len(draws) == 2
    assert not set(draws[0]) & set(draws[1])


def test_an_optimizer_that_returns_nan_is_reported_as_diverged_everywhere():
    found = small_comparison(nan_after(0)).summary
    assert found["diverged"] == 1.0
    assert found["learned_final_loss"] == 1e3
    assert found["speedup"] == found["speedup_high"] == 0.0


def test_a_seen_task_is_refused_or_marked():
    with pytest.raises(ValueError, match="`task` must not be one that was meta-trained on"):
        small_comparison(optax.sgd(0.1), seen={"parabola"})
    seen = small_comparison(optax.sgd(0.1), seen={"parabola"}, allow_seen=True).summary
    assert seen["seen"] is True
    assert small_comparison(optax.sgd(0.1), seen={"other"}).summary["seen"] is False


def test_a_control_may_not_take_the_name_of_another_optimizer():
    with pytest.raises(ValueError, match="`controls` must have names of their own; got adam"):
        small_comparison(optax.sgd(0.1), controls={"adam": optax.adam(1.0)})
