"""Comparisons with tuned baselines."""

from functools import partial

import optax
import pytest
from parabolas import KEY, nan_after, noisy, parabola

from l2o.evaluation.baselines import BASELINES, tune
from l2o.evaluation.compare import compare
from l2o.evaluation.evaluate import draw_starts, evaluate


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
