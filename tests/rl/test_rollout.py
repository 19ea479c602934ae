"""Groups of runs that are acted upon, and their critic."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from walk import HEAD, LINEAR, advantages_of, compiled_worker, theta_for, walk

from l2o.optimizers import nets
from l2o.policies.heads import make_head
from l2o.policies.policy import Actor, gru_actor
from l2o.rl.environment import Observation
from l2o.rl.reinforce import reinforce
from l2o.rl.rollout import (
    ActorCritic,
    first_actor_critic,
    likelihood,
    value_of,
)


def test_a_window_that_cuts_an_episode_is_bootstrapped():
    """With a critic that knows the value, windows of one decision see what comes after them."""
    environment = walk(1, horizon=2)
    theta = theta_for(environment)
    critic = nets.mlp_init(jax.random.key(0), (3, 32, 32, 1))
    critic = jax.tree.map(jnp.zeros_like, critic) | {"b2": jnp.array([2.5])}
    theta = theta._replace(critic=critic)
    population = compiled_worker(
        environment, LINEAR, HEAD, num_groups=64, group_size=1, antithetic=False
    )
    state = population.init(jax.random.key(0))
    _, rollout, _ = population.collect(jax.random.key(1), theta, state, ())
    credit = advantages_of(theta, rollout, discount=0.5, gae_lambda=0.95)
    outcome = rollout.transitions.outcome
    later = np.where(outcome.done, 0.0, 0.5 * 2.5)
    assert 0 < np.mean(outcome.done) < 1
    np.testing.assert_allclose(credit.targets[..., 0], outcome.reward + later, rtol=1e-5)
    np.testing.assert_allclose(value_of(critic, rollout.last), 2.5, rtol=1e-6)


def test_a_recurrent_actor_remembers_earlier_windows():
    environment = walk(3, horizon=9)
    actor = gru_actor(1, 1, 4)
    theta = theta_for(environment, actor)
    noise = optax.tree.random_like(jax.random.key(5), theta.actor)
    theta = theta._replace(actor=jax.tree.map(lambda t, z: t + 0.5 * z, theta.actor, noise))
    population = compiled_worker(
        environment, actor, HEAD, num_groups=8, group_size=2, antithetic=True
    )
    state = population.init(jax.random.key(0))
    state, _, _ = population.collect(jax.random.key(1), theta, state, ())
    _, rollout, _ = population.collect(jax.random.key(2), theta, state, ())
    log_prob, _ = jax.jit(likelihood, static_argnums=(1, 2))(theta, actor, HEAD, rollout)
    np.testing.assert_allclose(log_prob, rollout.transitions.log_prob, rtol=1e-4, atol=1e-5)
    has_begun = np.any(np.asarray(rollout.carry) != 0, axis=(1, 2, 3))
    np.testing.assert_array_equal(has_begun, np.asarray(state.state.step[:, 0] > 0))
    assert 0 < np.mean(has_begun) < 1


def test_a_group_shares_all_but_its_noise_and_starts_anew_together():
    environment = walk(2, horizon=4)
    theta = theta_for(environment)
    theta = theta._replace(actor={"w": jnp.float32(0.0), "b": jnp.float32(0.0)})
    population = compiled_worker(
        environment, LINEAR, HEAD, num_groups=8, group_size=4, antithetic=True
    )
    state = population.init(jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), 3):
        state, rollout, metrics = population.collect(key, theta, state, ())
        pre_squash = np.asarray(rollout.transitions.pre_squash[..., 0, 0])
        np.testing.assert_allclose(pre_squash[:, 0], -pre_squash[:, 1], rtol=1e-6)
        np.testing.assert_allclose(pre_squash[:, 2], -pre_squash[:, 3], rtol=1e-6)
        assert np.all(np.abs(pre_squash[:, 0] - pre_squash[:, 2]) > 1e-6)
        assert len(np.unique(np.abs(pre_squash))) == pre_squash.size // 2
        for shared in (state.state.context, state.state.step):
            assert np.all(np.ptp(shared, axis=1) == 0)
        assert metrics["valid"] == metrics["finite"] == 1.0
    assert set(np.unique(state.state.step)) <= {0, 2}


def test_runs_of_a_group_draw_the_same_and_groups_do_not():
    environment = walk(3, horizon=6)
    population = compiled_worker(
        environment, LINEAR, HEAD, num_groups=4, group_size=4, antithetic=True
    )
    state = population.init(jax.random.key(0))
    drawn = []
    for k in range(4):
        state, _, _ = population.collect(jax.random.key(k), theta_for(environment), state, ())
        of_groups = np.asarray(state.state.drawn)
        assert np.all(np.ptp(of_groups, axis=1) == 0)
        drawn += [x for x in of_groups[:, 0] if x > 0]  # a run that has just begun drew nothing
    assert len(drawn) > 4 and len(set(drawn)) == len(drawn)


def test_what_follows_an_early_end_does_not_count():
    """Runs that end alone wait for their group, and their actions after the end are masked."""
    environment = walk(6, horizon=12, far=1.2)
    theta = theta_for(environment)
    population = compiled_worker(
        environment, LINEAR, HEAD, num_groups=32, group_size=2, antithetic=True
    )
    state = population.init(jax.random.key(0))
    waited = 0
    for k in range(3):
        was_over = np.asarray(state.is_over)
        state, rollout, metrics = population.collect(jax.random.key(k), theta, state, ())
        transitions = rollout.transitions
        done, mask = np.asarray(transitions.outcome.done), np.asarray(transitions.mask)
        ended_before = np.cumsum(done, axis=-1) - done > 0
        np.testing.assert_array_equal(mask, ~(ended_before | was_over[..., None]))
        # What was paid after an end is still there, and not in the mean.
        np.testing.assert_allclose(
            metrics["meta_loss"], -np.mean(np.asarray(transitions.outcome.reward)[mask]), rtol=1e-4
        )
        is_over = was_over | np.any(done, axis=-1)
        has_begun_anew = np.all(np.asarray(state.state.step) == 0, axis=1)
        np.testing.assert_array_equal(has_begun_anew, np.all(is_over, axis=1))
        expected = is_over & ~np.all(is_over, axis=1, keepdims=True)
        np.testing.assert_array_equal(state.is_over, expected)
        waited += np.sum(expected)
        assert metrics["valid"] == metrics["finite"] == 1.0  # who waits is not broken
    assert waited > 3


@pytest.mark.parametrize("name", ["squashed", "categorical"])
def test_other_heads_act_as_they_say(name):
    head = make_head(name, 1 if name == "squashed" else 3)
    actor = Actor(
        init=lambda key: jnp.zeros(3),
        start=lambda agents: (),
        apply=lambda theta, seen, carry: (2.0 * seen + theta[: head.num_outputs], carry),
    )
    environment = walk(1, horizon=9)
    theta = first_actor_critic(jax.random.key(0), actor.init(jax.random.key(0)), head, environment)
    population = compiled_worker(
        environment, actor, head, num_groups=16, group_size=2, antithetic=True
    )
    state, rollout, _ = population.collect(
        jax.random.key(1), theta, population.init(jax.random.key(0)), ()
    )
    pre_squash = np.asarray(rollout.transitions.pre_squash[:, :, 0])
    goes_on = ~np.asarray(rollout.transitions.outcome.done[:, 0, 0])
    expected = np.tanh(pre_squash) if name == "squashed" else pre_squash
    np.testing.assert_allclose(state.state.action[goes_on], expected[goes_on], rtol=1e-5)
    assert np.sum(goes_on) > 8
    assert (
        np.mean(pre_squash[:, 0] != pre_squash[:, 1]) > 0.5
    )  # opposite noise, so mostly other actions
    if name == "categorical":
        assert set(np.unique(pre_squash)) <= {0.0, 1.0, 2.0}
    log_prob, _ = jax.jit(likelihood, static_argnums=(1, 2))(theta, actor, head, rollout)
    np.testing.assert_allclose(log_prob, rollout.transitions.log_prob, rtol=1e-4)


def test_a_broken_run_is_left_out_and_the_others_are_as_they_were():
    theta = theta_for(walk(4))

    def gradient_and_metrics(environment):
        estimator = reinforce(
            environment, LINEAR, HEAD, num_groups=8, group_size=1, baseline="value"
        )
        state = jax.jit(estimator.init)(jax.random.key(0), theta)
        gradient, after, metrics = jax.jit(estimator.estimate)(jax.random.key(1), theta, state, ())
        return gradient, after, metrics, state

    _, _, _, before = gradient_and_metrics(walk(4))
    unlucky = before.state.context[3, 0]
    spoiled = walk(4, spoil=lambda r, s: jnp.where(s.context == unlucky, jnp.nan, r))
    gradient, after, metrics, _ = gradient_and_metrics(spoiled)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(metrics["valid"], 7 / 8)
    assert after.state.context[3, 0] != unlucky
    assert np.isfinite(metrics["meta_loss"])


def test_actor_critic_is_what_is_trained():
    theta = theta_for(walk(2))
    assert isinstance(theta, ActorCritic)
    seen = walk(2).observe(walk(2).start(jax.random.key(0)))
    assert value_of(theta.critic, seen) == 0.0


def test_the_critic_goes_by_what_an_agent_sees_all_see_on_average_and_it_alone_sees():
    """One layer that multiplies the three by 1, 10 and 100; two agents, two actions."""
    critic = {"w0": jnp.array([[1.0], [10.0], [100.0]]), "b0": jnp.array([0.5])}
    seen = Observation(
        agents=jnp.array([[[1.0], [3.0]], [[-1.0], [0.0]]]), critic=jnp.array([[2.0], [-3.0]])
    )
    expected = [[1.0 + 20.0 + 200.5, 3.0 + 20.0 + 200.5], [-1.0 - 5.0 - 299.5, -5.0 - 299.5]]
    np.testing.assert_allclose(value_of(critic, seen), expected, rtol=1e-6)
