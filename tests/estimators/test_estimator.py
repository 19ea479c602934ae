"""The mean of several estimators: streams, weights, and those that are dead."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import THETA, decay_problem
from estimator_table import once

from l2o.estimators.estimator import average_estimators
from l2o.estimators.pes import pes
from l2o.estimators.truncated_es import truncated_es

pytestmark = pytest.mark.usefixtures("strict_ranks")


def test_an_average_leaves_the_others_streams_unchanged(key):
    first, second = (truncated_es(decay_problem(), num_pairs=2, std=s) for s in (0.1, 0.2))
    alone, both = average_estimators({"a": first}), average_estimators({"b": second, "a": first})
    results = {}
    for name, estimator in {"alone": alone, "both": both}.items():
        state = jax.jit(estimator.init)(key, THETA)
        results[name] = jax.jit(estimator.estimate)(key, THETA, state, estimator.data)
    for x, y in zip(
        jax.tree.leaves(results["alone"][1]["a"]),
        jax.tree.leaves(results["both"][1]["a"]),
        strict=True,
    ):
        np.testing.assert_array_equal(x, y)
    metrics = results["both"][2]
    assert metrics["a/meta_loss"] == results["alone"][2]["a/meta_loss"]
    assert metrics["a/meta_loss"] != metrics["b/meta_loss"]
    np.testing.assert_allclose(
        metrics["meta_loss"], (metrics["a/meta_loss"] + metrics["b/meta_loss"]) / 2, rtol=1e-6
    )
    only_b = average_estimators({"b": second})
    gradient_b, _, _ = jax.jit(only_b.estimate)(key, THETA, only_b.init(key, THETA), only_b.data)
    np.testing.assert_allclose(
        results["both"][0], (results["alone"][0] + gradient_b) / 2, rtol=1e-5
    )
    assert both.steps == first.steps + second.steps


def test_an_average_of_nothing():
    with pytest.raises(ValueError, match="`estimators` must not be empty"):
        average_estimators({})


def gradient_of(estimator, key):
    return np.asarray(once(estimator, key)[0])


def test_weights_are_those_of_the_gradient_and_the_metrics(key):
    parts = {
        name: pes(decay_problem(), num_pairs=2, std=std)
        for name, std in {"a": 0.1, "b": 0.2}.items()
    }
    alone = {
        name: gradient_of(average_estimators({name: part}), key) for name, part in parts.items()
    }
    weighted = average_estimators(parts, weights={"a": 3.0, "b": 1.0})
    gradient, _, metrics = once(weighted, key)
    np.testing.assert_allclose(gradient, 0.75 * alone["a"] + 0.25 * alone["b"], rtol=1e-5)
    expected = 0.75 * metrics["a/meta_loss"] + 0.25 * metrics["b/meta_loss"]
    np.testing.assert_allclose(metrics["meta_loss"], expected, rtol=1e-6)


def test_groups_are_reported_together(key):
    parts = {name: pes(decay_problem(), num_pairs=2, std=0.1) for name in ("a", "b", "c")}
    weights = {"a": 1.0, "b": 3.0, "c": 1.0}
    _, _, metrics = once(
        average_estimators(parts, weights=weights, report_groups={"ab": ["a", "b"]}), key
    )
    expected = 0.25 * metrics["a/meta_loss"] + 0.75 * metrics["b/meta_loss"]
    np.testing.assert_allclose(metrics["ab/meta_loss"], expected, rtol=1e-6)
    assert metrics["ab/valid"] == 1.0


def test_a_dead_part_is_left_out_and_seen(key):
    dead = decay_problem(loss=lambda losses, theta, state: losses * jnp.nan)
    alive = pes(decay_problem(), num_pairs=2, std=0.1)
    both = average_estimators(
        {"a": alive, "dead": pes(dead, num_pairs=2, std=0.1)}, weights={"a": 1, "dead": 5}
    )
    gradient, _, metrics = once(both, key)
    np.testing.assert_allclose(
        gradient, gradient_of(average_estimators({"a": alive}), key), rtol=1e-6
    )
    assert metrics["meta_loss"] == metrics["a/meta_loss"]
    assert np.isnan(metrics["dead/meta_loss"]) and metrics["dead/valid"] == 0


def test_all_parts_dead(key):
    dead = decay_problem(loss=lambda losses, theta, state: losses * jnp.nan)
    gradient, _, metrics = once(average_estimators({"dead": pes(dead, num_pairs=2, std=0.1)}), key)
    np.testing.assert_array_equal(gradient, np.zeros(2))
    assert np.isnan(metrics["meta_loss"]) and metrics["valid"] == 0


@pytest.mark.parametrize("weights", [{"a": 0.0}, {"a": -1.0}, {"a": jnp.inf}, {"b": 1.0}, {}])
def test_weights_that_do_not_fit(weights):
    with pytest.raises(
        ValueError, match="`weights` must be positive and finite, one for each of a"
    ):
        average_estimators({"a": pes(decay_problem(), num_pairs=2, std=0.1)}, weights=weights)
