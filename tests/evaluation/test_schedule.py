"""Schedules of policies: one that reads nothing of a run loses nothing when it is frozen."""

import jax
import numpy as np
import pytest
from small_policies import HORIZON, INTERVAL, noisy_theta, small_policy, tiny_task
from user_module import two_bowls

import l2o
from l2o.evaluation.schedule import find_schedule, mean_of, record_hyperparameters
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Trainer
from l2o.rng import stream

KEY = stream(0, "evaluation")


def constant_theta(lopt, actions):
    """Theta whose action is the same whatever is observed."""
    theta = lopt.init(jax.random.key(0))
    bias = np.zeros_like(theta["b2"])
    bias[: len(actions)] = actions
    return jax.tree.map(np.zeros_like, theta) | {"b2": bias}


@pytest.fixture(scope="module")
def constant():
    lopt = small_policy(hyperparameters=["momentum", "batch_fraction"])
    theta = constant_theta(lopt, (-0.5, 0.25, -1.0))
    return find_schedule(KEY, tiny_task(), lopt, theta, horizon=HORIZON, num_seeds=8)


def test_a_constant_action_in_closed_form(constant):
    """Of k actions by then: rates times exp(-0.15 k), 1 - momentum times exp(0.075 k)."""
    k = np.arange(HORIZON) // INTERVAL + 1
    before = (np.arange(HORIZON) + INTERVAL - 1) // INTERVAL
    expected = {
        "learning_rate": 0.1 * np.exp(-0.5 * 0.3 * k),
        "momentum": 1 - 0.1 * np.exp(0.25 * 0.3 * k),
        # The batch of a step is drawn before the action at that step.
        "batch_fraction": np.maximum(np.exp(-0.3 * before), 1 / 16),
    }
    assert set(constant.values) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(constant.values[name], values, rtol=1e-5)
        np.testing.assert_allclose(constant.recorded[name], np.tile(values, (8, 1)), rtol=1e-5)


def test_freezing_such_a_policy_costs_nothing(constant):
    np.testing.assert_allclose(constant.frozen.final_loss, constant.policy.final_loss, rtol=1e-4)
    np.testing.assert_allclose(constant.cost, (1.0, 1.0, 1.0), rtol=1e-4)


def test_an_agent_for_each_tensor():
    lopt = l2o.per_tensor_controller(
        hyperparameters=["momentum"], action_interval=INTERVAL, hidden_size=4, networks=2
    )
    theta = lopt.init(jax.random.key(0))
    theta = jax.tree.map(np.zeros_like, theta)
    theta["b2"] = np.zeros_like(theta["b2"])
    theta["b2"][:, 0] = (1.0, -1.0)
    found = find_schedule(KEY, two_bowls(), lopt, theta, horizon=HORIZON, num_seeds=8)
    k = np.arange(HORIZON) // INTERVAL + 1
    expected = 0.1 * np.exp(0.3 * np.stack([k, -k], axis=1))
    assert found.tensors == ("x", "y")
    np.testing.assert_allclose(found.values["learning_rate"], expected, rtol=1e-5)
    np.testing.assert_allclose(found.frozen.final_loss, found.policy.final_loss, rtol=1e-3)


def test_a_policy_that_reads_its_runs_is_averaged():
    lopt = small_policy()
    theta = noisy_theta(lopt, scale=1.0)
    found = find_schedule(KEY, two_bowls(), lopt, theta, horizon=HORIZON, num_seeds=8)
    rates = found.recorded["learning_rate"]
    assert np.ptp(rates[:, -1]) > 0
    means = np.exp(np.log(rates).mean(axis=0))
    np.testing.assert_allclose(found.values["learning_rate"], means, rtol=1e-5)
    ratios = np.log(found.frozen.final_loss / found.policy.final_loss)
    np.testing.assert_allclose(found.cost.value, np.exp(ratios.mean()))
    assert found.cost.low < found.cost.value < found.cost.high


def test_a_schedule_is_judged_on_other_starts_than_it_is_the_mean_of():
    lopt, task = small_policy(), two_bowls()
    theta = noisy_theta(lopt, scale=1.0)
    found = find_schedule(KEY, task, lopt, theta, horizon=HORIZON, num_seeds=8)
    starts = draw_starts(KEY, task, 16)
    seen, fresh = (jax.tree.map(lambda x, h=h: x[h], starts) for h in (np.s_[:8], np.s_[8:]))
    recorded = record_hyperparameters(task, lopt, theta, seen, HORIZON)
    for name, values in recorded.items():
        np.testing.assert_allclose(found.recorded[name], values, rtol=1e-5)
    trainer = Trainer(task, lambda setting: lopt.transform(theta, horizon=HORIZON), horizon=HORIZON)
    (judged,) = trainer.train(np.zeros(1), fresh, splits=())
    for curves in (found.policy, found.frozen):
        np.testing.assert_allclose(curves.probe_loss[:, 0], judged.probe_loss[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.policy.final_loss, judged.final_loss, rtol=1e-4)


def test_means_are_over_finite_seeds():
    rows = np.array([[0.1, 0.1], [0.4, np.nan], [0.4, 0.4]])
    np.testing.assert_allclose(mean_of("learning_rate", rows), [0.2, 0.2])
    with pytest.raises(ValueError, match="finite hyperparameters; got none of learning_rate"):
        mean_of("learning_rate", rows[1:2])


@pytest.mark.parametrize("lopt", [l2o.learnable_adam(), l2o.optimizer_selector()])
def test_what_sets_no_hyperparameters(lopt):
    theta = lopt.init(jax.random.key(0))
    with pytest.raises(ValueError, match="`RUN` must be a policy that sets hyperparameters"):
        find_schedule(KEY, two_bowls(), lopt, theta, horizon=4, num_seeds=8)
