"""Policies that are told what each of several rewards counts."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import moocore
import numpy as np
import optax
import pytest
from small_policies import HORIZON, WINDOW, begin, noisy_theta, small_policy, tiny_task

import l2o
from l2o.policies.heads import make_head
from l2o.policies.policy import mlp_actor
from l2o.policies.preference import draw_preference, told
from l2o.rl.environment import Environment, Observation, Outcome, training_environment
from l2o.rl.ppo import ppo_learner
from l2o.rl.reward import Reward

OBJECTIVES = ("log_loss", "examples")


def told_policy(**changes):
    return small_policy(hyperparameters=("batch_fraction",), objectives=OBJECTIVES, **changes)


@pytest.fixture(scope="module")
def environment():
    reward = Reward(OBJECTIVES, weights=(1.0, 4.0))
    return training_environment(
        tiny_task(), told_policy().policy, horizon=HORIZON, window=WINDOW, reward=reward
    )


def test_a_run_is_paid_by_the_shares_that_its_agents_see(environment):
    state = begin(environment, jax.random.key(0), jax.random.key(1))
    np.testing.assert_allclose(jnp.sum(state.preference), 1.0, rtol=1e-6)
    observed = environment.observe(state).agents
    np.testing.assert_array_equal(observed[0, -2:], state.preference)
    step = jax.jit(environment.step)
    for shares in ([1.0, 0.0], [0.25, 0.75]):
        given = state._replace(preference=jnp.array(shares))
        action = -jnp.ones((1, 2))
        _, outcome = step(jax.random.key(2), given, action, environment.data)
        log_loss, examples = outcome.rewards
        expected = shares[0] * log_loss + shares[1] * 4.0 * examples
        np.testing.assert_allclose(outcome.reward, expected, rtol=1e-5)


def test_shares_are_drawn_for_each_run_and_lie_everywhere(environment):
    starts = jax.vmap(environment.start)(jax.random.split(jax.random.key(0), 500))
    shares = np.asarray(starts.preference)[:, 0]
    # Uniform: mean 1/2 and standard deviation 1/√12, within four standard errors.
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 500)
    assert abs((shares < 0.1).mean() - 0.1) < 4 * np.sqrt(0.09 / 500)
    assert draw_preference(jax.random.key(0), 0).shape == (0,)


@pytest.mark.parametrize("make", [l2o.scheduler, l2o.per_tensor_controller, l2o.optimizer_selector])
def test_what_each_reward_counts_changes_the_updates(make):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    objectives = ("log_loss", "loss")

    def update(seed=0, **preference):
        lopt = make(objectives=objectives, action_interval=1, **preference)
        theta = noisy_theta(lopt, scale=1.0, seed=seed)
        tx = lopt.transform(theta, horizon=10)
        state = tx.init(params)
        for _ in range(3):
            updates, state = tx.update(params, state, params, value=1.0)
        return np.asarray(updates["w"])

    equal = update(preference=np.array([0.5, 0.5]))
    np.testing.assert_array_equal(equal, update(preference=(3.0, 3.0)))
    extremes = ((1.0, 0.0), (0.0, 1.0))
    ends = [[update(seed, preference=extreme) for extreme in extremes] for seed in range(4)]
    assert any(not np.array_equal(*pair) for pair in ends)


def test_the_preference_is_chosen_when_a_release_is_used(tmp_path):
    lopt = told_policy(preference=(0.5, 0.5))
    theta = noisy_theta(lopt)
    l2o.save(tmp_path / "told.safetensors", lopt, theta)
    params = jnp.ones((2, 2))

    def rates(tx):
        state = tx.init(params)
        _, state = tx.update(params, state, params, value=1.0)
        return np.asarray(state.controlled.codes)

    path = tmp_path / "told.safetensors"
    chosen = l2o.optimizer(path, horizon=20, preference={"log_loss": 1.4, "examples": 0.6})
    direct = told_policy(preference=(0.7, 0.3)).transform(theta, horizon=20)
    np.testing.assert_allclose(rates(chosen), rates(direct), rtol=1e-6)
    only = l2o.optimizer(path, horizon=20, preference={"examples": 1})
    assert not np.allclose(rates(only), rates(direct))
    default = l2o.optimizer(path, horizon=20)
    np.testing.assert_array_equal(rates(default), rates(lopt.transform(theta, horizon=20)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: told_policy(preference=(1.0,)), "`preference` must be a weight for each of log_l"),
        (
            lambda: told_policy(preference=(0.0, 0.0)),
            "none is negative and one is above 0; got 0.0",
        ),
        (
            lambda: told_policy(preference=(2.0, -1.0)),
            "none is negative and one is above 0; got 2.",
        ),
        (lambda: told_policy(preference=("a", 1)), "none is negative and one is above 0; got a, 1"),
        (lambda: small_policy(objectives=("loss",)), "`objectives` must be at least two rewards"),
        (lambda: small_policy(objectives=("loss",) * 2), "`objectives` must be at least two"),
        (
            lambda: small_policy(preference=(1.0,)),
            "`preference` must be a weight for each of no obj",
        ),
        (
            lambda: training_environment(
                tiny_task(), told_policy().policy, horizon=HORIZON, window=WINDOW
            ),
            "`reward` must be what scheduler is told the shares of, log_loss examples; got lo",
        ),
        (
            lambda: l2o.optimizer("digits", horizon=10, preference={"loss": 1.0}),
            "`preference` goes with policies that are told what several rewards count; got loss",
        ),
        (
            lambda: l2o.optimizer("digits", horizon=10, preference={}),
            "`preference` goes with policies",
        ),
        (
            lambda: l2o.optimizer("digits", horizon=10, preference=[0.5, 0.5]),
            "`preference` must be a dict of what each reward counts; got .0.5, 0.5",
        ),
        (
            lambda: small_policy(objectives="loss"),
            "`objectives` must be a list of rewards; got loss",
        ),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_objective_that_a_release_was_not_told(tmp_path):
    lopt = told_policy()
    l2o.save(tmp_path / "told.safetensors", lopt, noisy_theta(lopt))
    with pytest.raises(ValueError, match="`preference` must be among log_loss, examples, for wh"):
        l2o.optimizer(tmp_path / "told.safetensors", horizon=20, preference={"accuracy": 1.0})
    with pytest.raises(ValueError, match="none is negative and one is above 0"):
        l2o.optimizer(tmp_path / "told.safetensors", horizon=20, preference={"examples": 0.0})


class Point(NamedTuple):
    preference: jax.Array


def quadratics() -> Environment:
    """Episodes of one action, a place, which is paid by its distance to two points one apart."""

    def start(key):
        return Point(draw_preference(key, 2))

    def step(key, state, action, data):
        del key, data
        rewards = -jnp.square(action[0, 0] - jnp.array([0.0, 1.0]))
        reward = jnp.sum(state.preference * rewards)
        return state, Outcome(
            reward, reward[None], rewards, jnp.bool_(True), jnp.float32(1.0), jnp.bool_(False)
        )

    return Environment(
        init=start,
        start=start,
        enter=lambda key, state, data: state,
        observe=lambda s: Observation(told(jnp.zeros((1, 0)), s.preference), jnp.zeros(0)),
        step=step,
        num_actions=1,
        steps_per_action=1,
        reward_names=("near", "far"),
    )


def test_one_policy_finds_the_whole_front_of_two_quadratics():
    """The front is f₂ = (1 - √f₁)², whose hypervolume up to (1, 1) is 5/6."""
    actor = mlp_actor(2, 1, 16)
    schedule = optax.linear_schedule(0.01, 0.0, 300 * 4)
    learner = ppo_learner(
        {"point": quadratics()},
        actor,
        make_head("gaussian", 1),
        optax.adam(schedule),
        num_pairs=64,
        epochs=2,
        minibatches=2,
    )

    @jax.jit
    def train(key):
        k_theta, k_init, k_steps = jax.random.split(key, 3)
        step = lambda state, k: (learner.step(k, state, learner.data)[0], None)
        first = learner.init(k_init, actor.init(k_theta))
        state, _ = jax.lax.scan(step, first, jax.random.split(k_steps, 300))
        return learner.theta(state)

    theta = train(jax.random.key(0))
    shares = np.linspace(0.0, 1.0, 41, dtype=np.float32)
    places, _ = actor.apply(theta, jnp.stack([shares, 1.0 - shares], 1), ())
    points = np.square(np.asarray(places, np.float64) - [[0.0, 1.0]])
    assert moocore.hypervolume(points, ref=(1.0, 1.0)) >= 0.98 * 5 / 6
    assert np.corrcoef(places[:, 0], 1.0 - shares)[0, 1] > 0.98
