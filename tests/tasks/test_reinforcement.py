"""Agents that learn by PPO."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import l2o
from l2o.tasks.networks import actor_critic
from l2o.tasks.quadratic import rotated_quadratic
from l2o.tasks.reinforcement import (
    GAE_LAMBDA,
    VALUE_WEIGHT,
    Played,
    actor_critic_agent,
    first_returns,
    generalized_advantages,
    make_environment,
    play,
    ppo_breakout,
    ppo_cartpole,
    ppo_objective,
)


class Counter:
    """Observes the step and the last action; every third step ends an episode."""

    def reset(self, key, params):
        return jnp.zeros(2), jnp.int32(0)

    def step(self, key, state, action, params):
        done = state == 2
        state = jnp.where(done, 0, state + 1)
        observation = jnp.array([state, action], jnp.float32)
        return observation, state, 1.0 * action, done, False, {}


def drawn_play(key, *, environments=3, steps=6) -> Played:
    keys = jax.random.split(key, 4)
    shape = environments, steps
    return Played(
        observations=jax.random.normal(keys[0], (environments, steps + 1, 2)),
        actions=jax.random.randint(keys[1], shape, 0, 3),
        rewards=jax.random.normal(keys[2], shape),
        done=jax.random.bernoulli(keys[3], 0.3, shape),
    )


def weighted_differences(played: Played, values: np.ndarray, discount: float) -> np.ndarray:
    """Advantages as sums over later steps up to the end of the episode or of what was played."""
    advantages = np.zeros(played.rewards.shape)
    for i, t in np.ndindex(advantages.shape):
        weight = 1.0
        for later in range(t, advantages.shape[1]):
            following = 0.0 if played.done[i, later] else values[i, later + 1]
            delta = played.rewards[i, later] + discount * following - values[i, later]
            advantages[i, t] += weight * delta
            if played.done[i, later]:
                break
            weight *= discount * GAE_LAMBDA
    return advantages


def test_what_is_played_is_what_the_environment_gives():
    actor = {"w0": jnp.zeros((2, 3)), "b0": jnp.log(jnp.array([0.2, 0.3, 0.5]))}
    many = jax.jit(jax.vmap(lambda seed: play(Counter(), None, actor, seed, 7)))
    played = jax.device_get(many(jnp.arange(500)))
    assert played.observations.shape == (500, 8, 2)
    np.testing.assert_array_equal(played.observations[0, :, 0], [0, 1, 2, 0, 1, 2, 0, 1])
    np.testing.assert_array_equal(played.observations[:, 1:, 1], played.actions)
    np.testing.assert_array_equal(played.rewards, played.actions)
    np.testing.assert_array_equal(played.done[0], [0, 0, 1, 0, 0, 1, 0])
    share = np.bincount(played.actions.ravel()) / played.actions.size
    error = np.sqrt(share * (1.0 - share) / played.actions.size)
    assert np.all(np.abs(share - [0.2, 0.3, 0.5]) < 4.0 * error)
    np.testing.assert_array_equal(first_returns(played), played.actions[:, :3].sum(axis=1))


def test_advantages_are_sums_of_later_differences(key):
    played = jax.device_get(jax.jit(drawn_play)(key))
    values = np.asarray(jax.random.normal(jax.random.key(1), (3, 7)))
    found = jax.jit(generalized_advantages)(played, values, 0.9)
    expected = weighted_differences(played, values, 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_the_clipped_objective_where_ratios_are_one(key):
    played = jax.device_get(jax.jit(drawn_play)(key))
    params = jax.jit(lambda key: actor_critic.init(key, 2, (5,), 3))(key)
    params = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), params)
    see = lambda params: (
        jax.nn.log_softmax(actor_critic.layers(params["actor"], played.observations[:, :-1])[-1]),
        actor_critic.layers(params["critic"], played.observations)[-1][..., 0],
    )
    at = *np.indices(played.actions.shape), played.actions
    old_probs, old_values = jax.device_get(jax.jit(see)(params))
    advantages = weighted_differences(played, old_values, 0.95)
    targets = advantages + old_values[:, :-1]
    standard = (advantages - advantages.mean()) / advantages.std()

    def clipped(params):
        log_probs, values = see(params)
        ratio = jnp.exp(log_probs[at] - old_probs[at])
        policy = jnp.minimum(ratio * standard, jnp.clip(ratio, 0.8, 1.2) * standard)
        near = old_values[:, :-1] + jnp.clip(values[:, :-1] - old_values[:, :-1], -0.2, 0.2)
        error = jnp.maximum((values[:, :-1] - targets) ** 2, (near - targets) ** 2)
        entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
        return -policy.mean() + VALUE_WEIGHT * 0.5 * error.mean() - 0.02 * entropy.mean()

    ours = lambda params: ppo_objective(params, played, jnp.float32(0.95), jnp.float32(0.02))
    expected, found = (jax.jit(jax.grad(f))(params) for f in (clipped, ours))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)


def test_backpropagation_through_training_is_refused():
    task = dataclasses.replace(rotated_quadratic(2), is_differentiable=False)
    problem = l2o.inner_problem(task, l2o.learnable_sgd(), horizon=4, window=2)
    with pytest.raises(ValueError, match="for a task whose loss has no derivative"):
        l2o.full_grad(problem, num_members=2)


def test_without_gymnax(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnax", None)
    with pytest.raises(ValueError, match=r"needs the package gymnax; got CartPole-v1.*l2o\[gymnax"):
        ppo_cartpole()


def test_the_loss_is_one_minus_the_return_and_has_a_gradient(key):
    """A pole whose cart is always pushed one way falls after eight to ten steps."""
    pytest.importorskip("gymnax")
    task = actor_critic_agent("cart", "CartPole-v1", (4,), good_return=20.0, num_steps=12)
    assert task.modifies_gradients and not task.is_differentiable

    def measure(key):
        instance = task.sample(key)
        params = task.init(key, instance)
        params["actor"]["b1"] = jnp.array([50.0, 0.0])
        seeds = task.batch(key, instance, (), "train")
        loss, gradient = jax.value_and_grad(task.loss)(params, seeds, instance)
        return loss, gradient, task.metrics(params, seeds, instance)

    loss, gradient, metrics = jax.jit(measure)(key)
    assert 8.0 <= metrics["return"] <= 10.0
    np.testing.assert_allclose(loss, 1.0 - metrics["return"] / 20.0, rtol=1e-5)
    assert all(np.any(x) for x in jax.tree.leaves(gradient["critic"]))
    with pytest.raises(ValueError, match="`num_steps` must be below the time limit of CartPole-v1"):
        actor_critic_agent("cart", "CartPole-v1", (4,), good_return=20.0, num_steps=500)


@pytest.mark.slow
def test_a_paddle_that_follows_the_ball_is_the_unit_of_breakout():
    pytest.importorskip("gymnax")
    env, env_params = make_environment("Breakout-MinAtar")

    def step(state, key):
        ahead = jnp.where((state.ball_dir == 1) | (state.ball_dir == 2), 1, -1)
        ball = jnp.clip(state.ball_x + ahead, 0, 9)
        action = jnp.where(state.pos < ball, 2, jnp.where(state.pos > ball, 1, 0))
        _, state, reward, *_ = env.step(key, state, action, env_params)
        return state, reward

    def follow(key):
        _, state = env.reset(key, env_params)
        return jax.lax.scan(step, state, jax.random.split(key, 128))[1].sum()

    returns = jax.jit(jax.vmap(follow))(jax.random.split(jax.random.key(0), 4))
    np.testing.assert_array_equal(returns, 11.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "rate", "before", "after"),
    [(ppo_cartpole, 0.003, 30.0, 110.0), (ppo_breakout, 0.003, 1.0, 2.0)],
)
def test_adam_raises_the_return(family, rate, before, after):
    pytest.importorskip("gymnax")
    task = family().evaluation[0]

    def train(key):
        k_init, k_train, k_test = jax.random.split(key, 3)
        instance = task.sample(key)
        tx = optax.adam(rate)

        def measure(params):
            on = lambda k: task.metrics(params, task.batch(k, instance, (), "test"), instance)
            return jnp.mean(jax.vmap(on)(jax.random.split(k_test, 8))["return"])

        def step(carry, k):
            params, state = carry
            grads = jax.grad(task.loss)(params, task.batch(k, instance, (), "train"), instance)
            updates, state = tx.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        start = task.init(k_init, instance)
        carry = start, tx.init(start)
        (params, _), _ = jax.lax.scan(step, carry, jax.random.split(k_train, 200))
        return measure(start), measure(params)

    starts, ends = jax.jit(jax.vmap(train))(jax.random.split(jax.random.key(0), 4))
    assert np.all(starts < before) and np.mean(ends) > after
