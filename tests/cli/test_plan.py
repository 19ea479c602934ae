from dataclasses import replace
from unittest.mock import Mock

import jax.numpy as jnp
import numpy as np
import pytest

from l2o.cli import by_reward
from l2o.cli.plan import resolve
from l2o.cli.population import check_divides
from l2o.cli.settings import PRESETS, MetaTraining
from l2o.rl.reward import Reward


@pytest.mark.parametrize(
    ("estimator", "num_pairs", "unit", "nearest"),
    [("pes", 5, 4, 4), ("pes", 7, 4, 8), ("CMA_ES", 5, 2, 4), ("full_grad", 7, 2, 8)],
)
def test_pairs_that_devices_cannot_share(estimator, num_pairs, unit, nearest):
    """A candidate of a strategy, like a member that backpropagates, is half a pair."""
    settings = MetaTraining(estimator=estimator, num_pairs=num_pairs)
    message = (
        f"`num_pairs` must be a multiple of {unit} on 4 devices; got {num_pairs}. "
        f"Try num_pairs={nearest}."
    )
    with pytest.raises(ValueError, match=message):
        check_divides(settings, 4)
    check_divides(replace(settings, num_pairs=nearest), 4)


def test_groups_that_devices_cannot_share():
    settings = MetaTraining(
        optimizer="scheduler", estimator="reinforce", baseline="leave_one_out", num_pairs=6
    )
    with pytest.raises(ValueError, match=r"multiple of 8 on 4 devices; got 6. Try num_pairs=8"):
        check_divides(settings, 4)
    check_divides(replace(settings, num_pairs=8), 4)


@pytest.mark.parametrize(
    ("steps", "log_every", "of_chunk", "between_checkpoints"),
    [(1000, 10, 10, 100), (1001, 10, 7, 98), (6, 10, 6, 96), (13, 10, 1, 100)],
)
def test_chunks_divide_the_run(steps, log_every, of_chunk, between_checkpoints):
    settings = replace(
        PRESETS["smoke"], steps=steps, log_every=log_every, checkpoint_every=100, devices=1
    )
    plan = resolve(settings)
    assert (plan.log_every, plan.checkpoint_every) == (of_chunk, between_checkpoints)


def test_what_cannot_be_evaluated_is_told_before_meta_training():
    settings = MetaTraining(
        task=("user_module:shrinks_in_training",),
        optimizer="user_module:saves_examples",
        estimator="ppo",
        horizon=(50,),
        num_pairs=4,
        devices=1,
    )
    with pytest.raises(ValueError, match=r"`task` must have `shrink` .*; got bowl, which has none"):
        resolve(settings)
    assert resolve(replace(settings, evaluate=False)).learner.steps > 0


def wrapped(monkeypatch, *names):
    """Records what the parts of a learner of policies are given, by name."""
    parts = {name: Mock(wraps=getattr(by_reward, name)) for name in names}
    for name, part in parts.items():
        monkeypatch.setattr(by_reward, name, part)
    return parts


def policy_settings(**changes):
    return MetaTraining(
        task=("quadratic", "user_module:bowl"),
        optimizer="scheduler",
        horizon=(50, 100),
        num_pairs=4,
        devices=1,
        weights=(1.0, 3.0),
        averaging=0.7,
        discount=0.9,
        entropy_weight=0.01,
        **changes,
    )


def test_environments_are_what_settings_say(monkeypatch):
    parts = wrapped(monkeypatch, "training_environment")
    resolve(
        policy_settings(
            estimator="reinforce",
            reward=("log_loss", "loss"),
            reward_weights=(2.0, 0.5),
            reward_on="valid",
            reward_batches=2,
            penalty=3.0,
        )
    )
    reward = Reward(("log_loss", "loss"), weights=(2.0, 0.5), on="valid", batches=2, penalty=3.0)
    calls = {call.args[0].name: call.kwargs for call in parts["training_environment"].mock_calls}
    ids = {"quadratic_10": (1.0, 0.0), "bowl": (0.0, 1.0)}  # tell the critic which task it is
    assert calls.keys() == ids.keys()
    for name, given in calls.items():
        assert given["reward"] == reward and given["privileged"] == ids[name]
        assert (given["horizon"], given["window"], given["credit"]) == ((50, 100), 50, "team")


def test_ppo_is_what_settings_say(monkeypatch):
    parts = wrapped(monkeypatch, "ppo_learner")
    resolve(policy_settings(estimator="ppo", trace=0.8, epochs=2, minibatches=4, clip_ratio=0.3))
    call = parts["ppo_learner"].call_args
    expected = {"discount": 0.9, "gae_lambda": 0.8, "epochs": 2, "minibatches": 4}
    expected |= {"clip_ratio": 0.3, "entropy_weight": 0.01, "num_pairs": 4, "ema_decay": 0.7}
    assert {name: call.kwargs[name] for name in expected} == expected
    assert call.kwargs["weights"] == {"quadratic_10": 1.0, "bowl": 3.0}
    optimizer, theta = call.args[3], jnp.zeros(())
    state = optimizer.init(theta)
    for _ in range(2):
        update, state = optimizer.update(jnp.ones(()), state, theta)
    # It warms up over 50 outer steps of eight updates each.
    np.testing.assert_allclose(update, -MetaTraining().learning_rate / (50 * 8), rtol=1e-4)


def test_reinforce_is_what_settings_say(monkeypatch):
    parts = wrapped(monkeypatch, "reinforce", "mean_of", "gradient_learner")
    resolve(policy_settings(estimator="reinforce", baseline="value"))
    assert len(parts["reinforce"].mock_calls) == 2
    for call in parts["reinforce"].mock_calls:
        given = call.kwargs
        assert (given["baseline"], given["discount"]) == ("value", 0.9)
        assert (given["entropy_weight"], given["num_groups"], given["group_size"]) == (0.01, 4, 2)
    assert parts["mean_of"].call_args.kwargs["weights"] == {"quadratic_10": 1.0, "bowl": 3.0}
    assert parts["gradient_learner"].call_args.kwargs["averaging"] == 0.7
