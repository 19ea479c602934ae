"""Proximal policy optimization."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from walk import HEAD, LINEAR, advantages_of, compiled_worker, theta_for, walk, window_of

from l2o.policies.policy import gru_actor
from l2o.rl.ppo import minibatch_orders, ppo_learner, ppo_loss
from l2o.rl.reinforce import reinforce_loss
from l2o.rng import key_of

LOSS = {
    "clip_ratio": 0.2,
    "value_clip": 0.2,
    "value_weight": 0.5,
    "entropy_weight": 0.0,
    "standardize": True,
}
"""What `ppo_loss` takes, as `ppo_learner` does by default."""


@pytest.mark.parametrize(
    "actor",
    [
        pytest.param(LINEAR, id="linear", marks=pytest.mark.slow),
        pytest.param(gru_actor(1, 1, 3), id="gru"),
    ],
)
def test_one_pass_of_ppo_without_clipping_is_reinforce(actor):
    environment = walk(4, horizon=8)
    theta = theta_for(environment, actor, critic_scale=0.3)
    noise = optax.tree.random_like(jax.random.key(5), theta.actor)
    theta = theta._replace(actor=jax.tree.map(lambda t, z: t + 0.3 * z, theta.actor, noise))
    learner = ppo_learner(
        {"walk": environment},
        actor,
        HEAD,
        optax.sgd(1.0),
        num_pairs=8,
        epochs=1,
        minibatches=1,
        clip_ratio=np.inf,
        value_clip=np.inf,
        standardize=False,
        gae_lambda=0.8,
    )
    state = jax.jit(learner.init)(jax.random.key(2), theta.actor)._replace(theta=theta)
    after, _ = jax.jit(learner.step)(jax.random.key(3), state, learner.data)
    k_act, _ = jax.random.split(jax.random.key(3))
    population = compiled_worker(
        environment, actor, HEAD, num_groups=8, group_size=2, antithetic=True
    )
    _, rollout, _ = population.collect(
        key_of(k_act, "walk"), theta, state.estimator_state["walk"], ()
    )
    credit = advantages_of(theta, rollout, gae_lambda=0.8)
    cost = lambda theta: reinforce_loss(
        theta, actor, HEAD, rollout, credit, value_weight=0.5, entropy_weight=0.0
    )[0]
    gradient = jax.jit(jax.grad(cost))(theta)
    moved = jax.tree.map(jnp.subtract, theta, after.theta)
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    assert optax.tree.norm(gradient.actor) > 0.01


def test_ppo_gives_nothing_for_ratios_beyond_the_bounds():
    """Ratio 2 for a gain and a half for a loss: no gradient; the other way round there is one."""
    environment = walk(1)
    theta = theta_for(environment)
    population = compiled_worker(
        environment, LINEAR, HEAD, num_groups=4, group_size=1, antithetic=False
    )
    _, rollout, _ = population.collect(
        jax.random.key(1), theta, population.init(jax.random.key(0)), ()
    )
    credit = advantages_of(theta, rollout)

    def gradient(ratio: float, advantage: float):
        transitions = rollout.transitions
        older = transitions._replace(log_prob=transitions.log_prob - np.log(ratio))
        cost = functools.partial(
            ppo_loss,
            actor=LINEAR,
            head=HEAD,
            rollout=rollout._replace(transitions=older),
            advantages=credit._replace(advantages=jnp.full_like(credit.advantages, advantage)),
            **LOSS | {"standardize": False, "value_weight": 0.0},
        )
        return float(optax.tree.norm(jax.jit(jax.grad(cost, has_aux=True))(theta)[0].actor))

    assert gradient(2.0, 1.0) == gradient(0.5, -1.0) == 0.0
    assert gradient(2.0, -1.0) > 0.01 and gradient(0.5, 1.0) > 0.01


def test_ppo_standardizes_the_advantages_of_a_minibatch():
    environment = walk(3)
    theta = theta_for(environment, critic_scale=0.3)
    rollout, credit = window_of(environment, theta)
    settings = LOSS | {"value_weight": 0.0}
    moved = credit._replace(advantages=5.0 + 3.0 * credit.advantages)
    cost = lambda theta, credit: ppo_loss(theta, LINEAR, HEAD, rollout, credit, **settings)[0]
    found, same = (jax.jit(jax.grad(cost))(theta, c).actor for c in (credit, moved))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    assert optax.tree.norm(found) > 1e-3


def test_the_critic_of_ppo_is_not_drawn_on_beyond_its_clip():
    """Beyond it, towards the target there is no gradient; away from the target there is."""
    environment = walk(3)
    theta = theta_for(environment, critic_scale=0.3)
    rollout, credit = window_of(environment, theta)
    settings = LOSS | {"standardize": False, "value_clip": 0.2}

    def gradient(target: float):
        older = credit._replace(
            advantages=jnp.zeros_like(credit.advantages),
            values=credit.values - 1.0,  # it has moved up by 1 since
            targets=credit.values + target,
        )
        cost = lambda theta: ppo_loss(theta, LINEAR, HEAD, rollout, older, **settings)[0]
        return float(optax.tree.norm(jax.jit(jax.grad(cost))(theta).critic))

    assert gradient(5.0) == 0.0
    assert gradient(-5.0) > 0.1


def test_the_clip_of_the_critic_does_not_depend_on_the_scale_of_rewards():
    """Paid a hundred times as much, a critic that starts at 0 moves a hundred times as far.

    In the first of two passes it moves beyond the clip, which decides what the second does.
    """

    def last_layer(scale: float, value_clip: float):
        environment = walk(3, spoil=lambda reward, state: scale * reward)
        learner = ppo_learner(
            {"walk": environment},
            LINEAR,
            HEAD,
            optax.sgd(0.5),
            num_pairs=8,
            epochs=2,
            minibatches=1,
            value_clip=value_clip,
        )
        state = jax.jit(learner.init)(jax.random.key(2), LINEAR.init(jax.random.key(0)))
        after, _ = jax.jit(learner.step)(jax.random.key(3), state, learner.data)
        return np.append(after.theta.critic["w2"], after.theta.critic["b2"])

    one = last_layer(1.0, 0.5)
    np.testing.assert_allclose(last_layer(100.0, 0.5), 100.0 * one, rtol=1e-3, atol=1e-3)
    assert np.max(np.abs(one - last_layer(1.0, np.inf))) > 0.05


def one_step_of_ppo(environments, **changes):
    """The learner, its state before one step of plain gradient descent, after it, and metrics."""
    learner = ppo_learner(
        environments,
        LINEAR,
        HEAD,
        optax.sgd(1.0),
        num_pairs=2,
        epochs=1,
        minibatches=1,
        gae_lambda=0.95,
        **changes,
    )
    state = jax.jit(learner.init)(jax.random.key(2), LINEAR.init(jax.random.key(0)))
    after, metrics = jax.jit(learner.step)(jax.random.key(3), state, learner.data)
    return learner, state, after, metrics


def test_environments_of_ppo_count_by_their_weights():
    """One always pays 1, the other 5: by hand what a critic that says 0 learns, and all means."""
    pays = lambda much: walk(1, spoil=lambda reward, state: 0.0 * reward + much)
    _, state, after, metrics = one_step_of_ppo(
        {"one": pays(1.0), "other": pays(5.0)}, weights={"one": 2.0, "other": 6.0}
    )
    moved = after.theta.critic["b2"] - state.theta.critic["b2"]
    np.testing.assert_allclose(moved, 0.5 * (0.25 * 1.0 + 0.75 * 5.0), rtol=1e-5)
    np.testing.assert_allclose(metrics["meta_loss"], -4.0, rtol=1e-5)
    np.testing.assert_allclose(metrics["value_loss"], 0.5 * (0.25 + 0.75 * 25.0), rtol=1e-5)


def test_ppo_gives_back_the_running_average():
    """Whose decay is a tenth at the first step."""
    learner, state, after, _ = one_step_of_ppo({"walk": walk(2)}, ema_decay=0.9)
    for name, first in state.theta.actor.items():
        last = after.theta.actor[name]
        np.testing.assert_allclose(learner.theta(after)[name], 0.1 * first + 0.9 * last, rtol=1e-5)
        assert abs(last - first) > 0.001


@pytest.mark.parametrize("num_spoilt", [1, 4])
def test_a_minibatch_whose_gradient_is_not_finite_is_left_out(num_spoilt):
    """Theta and the optimizer are as if it had not been there, and go on with the others."""

    def learner_of(limit: float):
        # Their sum overflows; what is not finite by itself does not count to begin with.
        spoil = lambda reward, state: jnp.where(state.context > limit, 3e38, reward)
        return ppo_learner(
            {"walk": walk(2, spoil=spoil)},
            LINEAR,
            HEAD,
            optax.adam(0.01),
            num_pairs=4,
            epochs=1,
            minibatches=4,
            standardize=False,
        )

    theta = LINEAR.init(jax.random.key(0))
    state = jax.jit(learner_of(np.inf).init)(jax.random.key(2), theta)
    contexts = np.sort(state.estimator_state["walk"].state.context[:, 0])
    limit = (contexts[-num_spoilt] + contexts[-num_spoilt - 1]) / 2 if num_spoilt < 4 else -np.inf
    learner = learner_of(limit)
    after, metrics = jax.jit(learner.step)(jax.random.key(3), state, learner.data)
    assert not np.isfinite(metrics["meta_gradient_norm"])  # it is told
    assert after.opt_state[0].count == 4 - num_spoilt
    if num_spoilt == 4:
        jax.tree.map(np.testing.assert_array_equal, state.theta, after.theta)
        jax.tree.map(np.testing.assert_array_equal, state.opt_state, after.opt_state)
        healthy = learner_of(np.inf)
        after, _ = jax.jit(healthy.step)(jax.random.key(4), after, healthy.data)
        assert after.opt_state[0].count == 4
    assert np.all(np.isfinite(np.concatenate([np.ravel(x) for x in jax.tree.leaves(after.theta)])))
    assert optax.tree.norm(jax.tree.map(jnp.subtract, after.theta, state.theta)) > 0.01


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_entropy_is_rewarded(name):
    environment = walk(3)
    theta = theta_for(environment)
    rollout, credit = window_of(environment, theta)
    nothing = credit._replace(advantages=jnp.zeros_like(credit.advantages))
    if name == "ppo":
        settings = {"value_weight": 0.0, "entropy_weight": 0.1, "standardize": False}
        cost = functools.partial(ppo_loss, **LOSS | settings)
    else:
        cost = functools.partial(reinforce_loss, value_weight=0.0, entropy_weight=0.1)
    cost_of = lambda theta: cost(theta, LINEAR, HEAD, rollout, nothing)
    gradient, metrics = jax.jit(jax.grad(cost_of, has_aux=True))(theta)
    entropy = lambda log_std: HEAD.entropy(jnp.zeros(1), log_std)
    slope = jax.grad(entropy)(theta.log_std)
    np.testing.assert_allclose(gradient.log_std, -0.1 * slope, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], entropy(theta.log_std), rtol=1e-5)
    assert slope > 0


def test_every_pass_takes_each_group_once_in_an_order_of_its_own():
    orders = minibatch_orders(jax.random.key(0), epochs=3, minibatches=4, num_groups=16)
    assert orders.shape == (12, 4)
    passes = np.asarray(orders).reshape(3, 16)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(16), (3, 1)))
    assert len({tuple(order) for order in passes} | {tuple(range(16))}) == 4
