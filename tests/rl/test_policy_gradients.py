"""Policy gradients against closed forms, and as learners that resume and are spread over devices.

The problem: s_{t+1} = 0.9 s_t + a_t from s_0 ~ N(1, 0.5²), paid -½ s_{t+1}² + c for a context c
that the runs of a group share; the agent sees s_t and acts with a ~ N(w s + b, σ²). The first two
moments of s follow a recursion, whose gradient is exact.
"""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

from l2o.estimators.estimator import average_estimators, key_of
from l2o.learner import gradient_learner
from l2o.optimizers import nets
from l2o.outer_loop import fit
from l2o.policies.heads import log_std_of, make_head
from l2o.policies.policy import Actor, gru_actor
from l2o.rl.environment import Environment, Observation, Outcome
from l2o.rl.ppo import PPOSettings, minibatch_orders, ppo_cost, ppo_learner, with_critic
from l2o.rl.reinforce import credit_of, reinforce, reinforce_cost
from l2o.rl.rollout import (
    ActorCritic,
    collector,
    first_actor_critic,
    likelihood,
    value_of,
)
from l2o.runs.folder import RunFolder

HEAD = make_head("gaussian", 1)
LINEAR = Actor(
    init=lambda key: {"w": jnp.float32(-0.3), "b": jnp.float32(0.2)},
    start=lambda agents: (),
    apply=lambda theta, seen, carry: (theta["w"] * seen + theta["b"], carry),
)


class Walk(NamedTuple):
    s: jax.Array
    context: jax.Array
    step: jax.Array
    drawn: jax.Array
    action: jax.Array


def walk(decisions: int, horizon: int | None = None, spoil=None, far=np.inf) -> Environment:
    """The problem, in windows of `decisions`.

    It records what the last step drew and what was done. `spoil` changes rewards; beyond `far` an
    episode ends early.
    """
    horizon = horizon or decisions

    def start(key):
        k_s, k_context = jax.random.split(key)
        s = 1.0 + 0.5 * jax.random.normal(k_s)
        nothing = jnp.zeros(()), jnp.zeros((1, 1))
        return Walk(s, 3.0 * jax.random.normal(k_context), jnp.int32(0), *nothing)

    def init(key):
        k_start, k_stage = jax.random.split(key)
        stage = decisions * jax.random.randint(k_stage, (), 0, horizon // decisions)
        return start(k_start)._replace(step=stage)

    def step(key, state, action, data):
        del data
        s = 0.9 * state.s + action[0, 0]
        reward = -0.5 * s**2 + state.context
        if spoil is not None:
            reward = spoil(reward, state)
        after = Walk(s, state.context, state.step + 1, jax.random.uniform(key), action)
        done = (after.step >= horizon) | (jnp.abs(s) > far)
        return after, Outcome(reward, reward[None], reward[None], done, jnp.float32(1.0))

    return Environment(
        init=init,
        start=start,
        enter=lambda key, state, data: state,
        observe=lambda state: Observation(state.s[None, None], jnp.ones(1)),
        step=step,
        decisions=decisions,
        inner_steps=1,
        names=("cost",),
    )


def expected_return(theta, spread, decisions):
    mean, variance, total = 1.0, 0.25, 0.0
    for _ in range(decisions):
        mean = (0.9 + theta["w"]) * mean + theta["b"]
        variance = (0.9 + theta["w"]) ** 2 * variance + jnp.exp(2.0 * log_std_of(spread)[0])
        total -= 0.5 * (variance + mean**2)
    return total


def theta_for(environment, actor=LINEAR, seed=0, critic_scale=0.0):
    theta = first_actor_critic(
        jax.random.key(seed), actor.init(jax.random.key(seed)), HEAD, environment
    )
    noise = optax.tree.random_like(jax.random.key(9), theta.critic)
    return theta._replace(
        critic=jax.tree.map(lambda c, z: c + critic_scale * z, theta.critic, noise)
    )


def replicated(estimator, theta, number):
    """Mean and standard error of first estimates."""

    def once(key):
        k_init, k_run = jax.random.split(key)
        return estimator.estimate(k_run, theta, estimator.init(k_init, theta), ())[0]

    found = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(1), number))
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), found)
    error = jax.tree.map(lambda g: jnp.std(g, axis=0, ddof=1) / number**0.5, found)
    return mean, error


@pytest.mark.parametrize("decisions", [1, 5])
@pytest.mark.parametrize(
    ("baseline", "group_size"),
    [("antithetic", 2), ("antithetic", 4), ("leave_one_out", 4), ("value", 1)],
)
def test_reinforce_is_unbiased(decisions, baseline, group_size):
    environment = walk(decisions)
    theta = theta_for(environment, critic_scale=0.5)
    exact = jax.grad(expected_return, argnums=(0, 1))(theta.actor, theta.spread, decisions)
    estimator = reinforce(
        environment,
        LINEAR,
        HEAD,
        num_groups=64 // group_size,
        group_size=group_size,
        baseline=baseline,
        standardize=False,
    )
    mean, error = replicated(estimator, theta, 3000)
    found = jax.tree.leaves((mean.actor, mean.spread))
    errors = jax.tree.leaves((error.actor, error.spread))
    for g, e, x in zip(found, errors, jax.tree.leaves(exact), strict=True):
        # Of a mean over decisions, and descended.
        assert np.all(np.abs(-decisions * g - x) < 4 * decisions * e)
        assert np.all(np.abs(x) > 5 * decisions * e)  # or it would not say much


def test_baselines_remove_what_a_group_shares():
    """The context is most of the return; antithetic and leave-one-out do not feel it."""
    environment = walk(5)
    theta = theta_for(environment)
    errors = {}
    for baseline, group_size in (("antithetic", 4), ("leave_one_out", 4), ("value", 4)):
        estimator = reinforce(
            environment,
            LINEAR,
            HEAD,
            num_groups=8,
            group_size=group_size,
            baseline=baseline,
            standardize=False,
        )
        _, error = replicated(estimator, theta, 500)
        errors[baseline] = np.hstack(jax.tree.leaves((error.actor, error.spread)))
    for baseline in ("antithetic", "leave_one_out"):
        assert np.all(errors[baseline] < 0.5 * errors["value"]), errors


def test_a_window_that_cuts_an_episode_is_bootstrapped():
    """With a critic that knows the value, windows of one decision see what comes after them."""
    environment = walk(1, horizon=2)
    theta = theta_for(environment)
    critic = nets.mlp_init(jax.random.key(0), (3, 32, 32, 1))
    critic = jax.tree.map(jnp.zeros_like, critic) | {"b2": jnp.array([2.5])}
    theta = theta._replace(critic=critic)
    population = collector(environment, LINEAR, HEAD, num_groups=64, group_size=1, antithetic=False)
    state = population.init(jax.random.key(0))
    _, rollout, _ = population.collect(jax.random.key(1), theta, state, ())
    credit = credit_of(theta, rollout, discount=0.5, trace=0.95)
    outcome = rollout.transitions.outcome
    later = np.where(outcome.done, 0.0, 0.5 * 2.5)
    assert 0 < np.mean(outcome.done) < 1
    np.testing.assert_allclose(credit.targets[..., 0], outcome.reward + later, rtol=1e-5)
    np.testing.assert_allclose(value_of(critic, rollout.last), 2.5, rtol=1e-6)


@pytest.mark.parametrize("actor", [LINEAR, gru_actor(1, 1, 3)], ids=["linear", "gru"])
def test_one_pass_of_ppo_without_clipping_is_reinforce(actor):
    environment = walk(4, horizon=8)
    theta = theta_for(environment, actor, critic_scale=0.3)
    noise = optax.tree.random_like(jax.random.key(5), theta.actor)
    theta = theta._replace(actor=jax.tree.map(lambda t, z: t + 0.3 * z, theta.actor, noise))
    settings = PPOSettings(
        epochs=1, minibatches=1, clip_ratio=np.inf, value_clip=np.inf, standardize=False, trace=0.8
    )
    learner = ppo_learner(
        {"walk": environment}, actor, HEAD, optax.sgd(1.0), num_pairs=8, settings=settings
    )
    state = learner.init(jax.random.key(2), theta.actor)._replace(theta=theta)
    after, _ = learner.step(jax.random.key(3), state, learner.data)
    k_act, _ = jax.random.split(jax.random.key(3))
    population = collector(environment, actor, HEAD, num_groups=8, group_size=2, antithetic=True)
    _, rollout, _ = population.collect(
        key_of(k_act, "walk"), theta, state.estimator_state["walk"], ()
    )
    credit = credit_of(theta, rollout, discount=1.0, trace=0.8)
    gradient, _ = jax.grad(reinforce_cost, has_aux=True)(
        theta, actor, HEAD, rollout, credit, value_weight=0.5, entropy_weight=0.0
    )
    moved = jax.tree.map(jnp.subtract, theta, after.theta)
    for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    assert optax.tree.norm(gradient.actor) > 0.01


def test_ppo_gives_nothing_for_ratios_beyond_the_bounds():
    """Ratio 2 for a gain and a half for a loss: no gradient; the other way round there is one."""
    environment = walk(1)
    theta = theta_for(environment)
    population = collector(environment, LINEAR, HEAD, num_groups=4, group_size=1, antithetic=False)
    _, rollout, _ = population.collect(
        jax.random.key(1), theta, population.init(jax.random.key(0)), ()
    )
    credit = credit_of(theta, rollout, discount=1.0, trace=1.0)

    def gradient(ratio: float, advantage: float):
        moves = rollout.transitions
        older = moves._replace(log_prob=moves.log_prob - np.log(ratio))
        cost = functools.partial(
            ppo_cost,
            actor=LINEAR,
            head=HEAD,
            rollout=rollout._replace(transitions=older),
            credit=credit._replace(advantages=jnp.full_like(credit.advantages, advantage)),
            settings=PPOSettings(standardize=False, value_weight=0.0),
        )
        return float(optax.tree.norm(jax.grad(cost, has_aux=True)(theta)[0].actor))

    assert gradient(2.0, 1.0) == gradient(0.5, -1.0) == 0.0
    assert gradient(2.0, -1.0) > 0.01 and gradient(0.5, 1.0) > 0.01


def window_of(environment, theta):
    population = collector(environment, LINEAR, HEAD, num_groups=8, group_size=1, antithetic=False)
    state = population.init(jax.random.key(0))
    _, rollout, _ = population.collect(jax.random.key(1), theta, state, ())
    return rollout, credit_of(theta, rollout, discount=1.0, trace=0.95)


def test_ppo_standardizes_the_advantages_of_a_minibatch():
    environment = walk(3)
    theta = theta_for(environment, critic_scale=0.3)
    rollout, credit = window_of(environment, theta)
    settings = PPOSettings(value_weight=0.0)
    moved = credit._replace(advantages=5.0 + 3.0 * credit.advantages)
    cost = lambda theta, credit: ppo_cost(theta, LINEAR, HEAD, rollout, credit, settings)[0]
    found, same = (jax.grad(cost)(theta, c).actor for c in (credit, moved))
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(same), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    assert optax.tree.norm(found) > 1e-3


def test_the_critic_of_ppo_is_not_drawn_on_beyond_its_clip():
    """Beyond it, towards the target there is no gradient; away from the target there is."""
    environment = walk(3)
    theta = theta_for(environment, critic_scale=0.3)
    rollout, credit = window_of(environment, theta)
    settings = PPOSettings(standardize=False, value_clip=0.2)

    def gradient(target: float):
        older = credit._replace(
            advantages=jnp.zeros_like(credit.advantages),
            values=credit.values - 1.0,  # it has moved up by 1 since
            targets=credit.values + target,
        )
        cost = lambda theta: ppo_cost(theta, LINEAR, HEAD, rollout, older, settings)[0]
        return float(optax.tree.norm(jax.grad(cost)(theta).critic))

    assert gradient(5.0) == 0.0
    assert gradient(-5.0) > 0.1


def one_step_of_ppo(environments, **changes):
    """The learner, its state before one step of plain gradient descent, after it, and metrics."""
    learner = ppo_learner(
        environments,
        LINEAR,
        HEAD,
        optax.sgd(1.0),
        num_pairs=2,
        settings=PPOSettings(epochs=1, minibatches=1),
        **changes,
    )
    state = learner.init(jax.random.key(2), LINEAR.init(jax.random.key(0)))
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
    np.testing.assert_allclose(metrics["critic_error"], 0.5 * (0.25 + 0.75 * 25.0), rtol=1e-5)


def test_ppo_gives_back_the_running_average():
    """Whose decay is a tenth at the first step."""
    learner, state, after, _ = one_step_of_ppo({"walk": walk(2)}, ema_decay=0.9)
    for name, first in state.theta.actor.items():
        last = after.theta.actor[name]
        np.testing.assert_allclose(learner.theta(after)[name], 0.1 * first + 0.9 * last, rtol=1e-5)
        assert abs(last - first) > 0.001


def test_reinforce_does_not_feel_the_scale_of_rewards():
    theta = theta_for(walk(2))

    @jax.jit
    def gradient(scale):
        environment = walk(2, spoil=lambda reward, state: scale * reward)
        estimator = reinforce(environment, LINEAR, HEAD, num_groups=4, group_size=2)
        state = estimator.init(jax.random.key(0), theta)
        found, _, _ = estimator.estimate(jax.random.key(1), theta, state, ())
        return jnp.hstack([*found.actor.values(), found.spread])

    np.testing.assert_allclose(gradient(1.0), gradient(5.0), rtol=1e-4)
    assert np.all(np.abs(gradient(1.0)) > 0.01)


@pytest.mark.parametrize("name", ["ppo", "reinforce"])
def test_entropy_is_rewarded(name):
    environment = walk(3)
    theta = theta_for(environment)
    rollout, credit = window_of(environment, theta)
    nothing = credit._replace(advantages=jnp.zeros_like(credit.advantages))
    if name == "ppo":
        settings = PPOSettings(value_weight=0.0, entropy_weight=0.1, standardize=False)
        cost = functools.partial(ppo_cost, settings=settings)
    else:
        cost = functools.partial(reinforce_cost, value_weight=0.0, entropy_weight=0.1)
    gradient, metrics = jax.grad(cost, has_aux=True)(theta, LINEAR, HEAD, rollout, nothing)
    entropy = lambda spread: HEAD.entropy(jnp.zeros(1), spread)
    slope = jax.grad(entropy)(theta.spread)
    np.testing.assert_allclose(gradient.spread, -0.1 * slope, rtol=1e-5)
    np.testing.assert_allclose(metrics["entropy"], entropy(theta.spread), rtol=1e-5)
    assert slope > 0


def test_every_pass_takes_each_group_once_in_an_order_of_its_own():
    orders = minibatch_orders(jax.random.key(0), PPOSettings(epochs=3, minibatches=4), 16)
    assert orders.shape == (12, 4)
    passes = np.asarray(orders).reshape(3, 16)
    np.testing.assert_array_equal(np.sort(passes, axis=1), np.tile(np.arange(16), (3, 1)))
    assert len({tuple(order) for order in passes} | {tuple(range(16))}) == 4


def test_a_recurrent_actor_remembers_earlier_windows():
    environment = walk(3, horizon=9)
    actor = gru_actor(1, 1, 4)
    theta = theta_for(environment, actor)
    noise = optax.tree.random_like(jax.random.key(5), theta.actor)
    theta = theta._replace(actor=jax.tree.map(lambda t, z: t + 0.5 * z, theta.actor, noise))
    population = collector(environment, actor, HEAD, num_groups=8, group_size=2, antithetic=True)
    state = population.init(jax.random.key(0))
    state, _, _ = population.collect(jax.random.key(1), theta, state, ())
    _, rollout, _ = population.collect(jax.random.key(2), theta, state, ())
    log_prob, _ = likelihood(theta, actor, HEAD, rollout)
    np.testing.assert_allclose(log_prob, rollout.transitions.log_prob, rtol=1e-4, atol=1e-5)
    has_begun = np.any(np.asarray(rollout.carry) != 0, axis=(1, 2, 3))
    np.testing.assert_array_equal(has_begun, np.asarray(state.state.step[:, 0] > 0))
    assert 0 < np.mean(has_begun) < 1


def test_a_group_shares_all_but_its_noise_and_starts_anew_together():
    environment = walk(2, horizon=4)
    theta = theta_for(environment)
    theta = theta._replace(actor={"w": jnp.float32(0.0), "b": jnp.float32(0.0)})
    population = collector(environment, LINEAR, HEAD, num_groups=8, group_size=4, antithetic=True)
    state = population.init(jax.random.key(0))
    for key in jax.random.split(jax.random.key(1), 3):
        state, rollout, metrics = population.collect(key, theta, state, ())
        raw = np.asarray(rollout.transitions.raw[..., 0, 0])
        np.testing.assert_allclose(raw[:, 0], -raw[:, 1], rtol=1e-6)
        np.testing.assert_allclose(raw[:, 2], -raw[:, 3], rtol=1e-6)
        assert np.all(np.abs(raw[:, 0] - raw[:, 2]) > 1e-6)
        assert len(np.unique(np.abs(raw))) == raw.size // 2
        for shared in (state.state.context, state.state.step):
            assert np.all(np.ptp(shared, axis=1) == 0)
        assert metrics["valid"] == metrics["finite"] == 1.0
    assert set(np.unique(state.state.step)) <= {0, 2}


def test_runs_of_a_group_draw_the_same_and_groups_do_not():
    environment = walk(3, horizon=6)
    population = collector(environment, LINEAR, HEAD, num_groups=4, group_size=4, antithetic=True)
    state = population.init(jax.random.key(0))
    drawn = []
    for k in range(4):
        state, _, _ = population.collect(jax.random.key(k), theta_for(environment), state, ())
        of_groups = np.asarray(state.state.drawn)
        assert np.all(np.ptp(of_groups, axis=1) == 0)
        drawn += [x for x in of_groups[:, 0] if x > 0]  # a run that has just begun drew nothing
    assert len(drawn) > 4 and len(set(drawn)) == len(drawn)


def test_what_follows_an_early_end_does_not_count():
    """Runs that end alone wait for their group, and their decisions after the end are masked."""
    environment = walk(6, horizon=12, far=1.2)
    theta = theta_for(environment)
    population = collector(environment, LINEAR, HEAD, num_groups=32, group_size=2, antithetic=True)
    state = population.init(jax.random.key(0))
    waited = 0
    for k in range(3):
        was_over = np.asarray(state.is_over)
        state, rollout, metrics = population.collect(jax.random.key(k), theta, state, ())
        moves = rollout.transitions
        done, mask = np.asarray(moves.outcome.done), np.asarray(moves.mask)
        ended_before = np.cumsum(done, axis=-1) - done > 0
        np.testing.assert_array_equal(mask, ~(ended_before | was_over[..., None]))
        # What was paid after an end is still there, and not in the mean.
        np.testing.assert_allclose(
            metrics["meta_loss"], -np.mean(np.asarray(moves.outcome.reward)[mask]), rtol=1e-4
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
    population = collector(environment, actor, head, num_groups=16, group_size=2, antithetic=True)
    state, rollout, _ = population.collect(
        jax.random.key(1), theta, population.init(jax.random.key(0)), ()
    )
    raw = np.asarray(rollout.transitions.raw[:, :, 0])
    goes_on = ~np.asarray(rollout.transitions.outcome.done[:, 0, 0])
    expected = np.tanh(raw) if name == "squashed" else raw
    np.testing.assert_allclose(state.state.action[goes_on], expected[goes_on], rtol=1e-5)
    assert np.sum(goes_on) > 8
    assert np.mean(raw[:, 0] != raw[:, 1]) > 0.5  # opposite noise, so mostly other actions
    if name == "categorical":
        assert set(np.unique(raw)) <= {0.0, 1.0, 2.0}
    log_prob, _ = likelihood(theta, actor, head, rollout)
    np.testing.assert_allclose(log_prob, rollout.transitions.log_prob, rtol=1e-4)


def test_a_broken_run_is_left_out_and_the_others_are_as_they_were():
    theta = theta_for(walk(4))

    def gradient_and_metrics(environment):
        estimator = reinforce(
            environment, LINEAR, HEAD, num_groups=8, group_size=1, baseline="value"
        )
        state = estimator.init(jax.random.key(0), theta)
        gradient, after, metrics = estimator.estimate(jax.random.key(1), theta, state, ())
        return gradient, after, metrics, state

    _, _, _, before = gradient_and_metrics(walk(4))
    unlucky = before.state.context[3, 0]
    spoiled = walk(4, spoil=lambda r, s: jnp.where(s.context == unlucky, jnp.nan, r))
    gradient, after, metrics, _ = gradient_and_metrics(spoiled)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    np.testing.assert_allclose(metrics["valid"], 7 / 8)
    assert after.state.context[3, 0] != unlucky
    assert np.isfinite(metrics["meta_loss"])


def tiny_ppo(mesh=None, actor=None):
    actor = actor or gru_actor(1, 1, 3)
    settings = PPOSettings(epochs=2, minibatches=4)
    return actor, ppo_learner(
        {"short": walk(4, 8), "long": walk(4, 16)},
        actor,
        HEAD,
        optax.adam(0.01),
        num_pairs=16,
        settings=settings,
        ema_decay=0.9,
        weights={"short": 1.0, "long": 2.0},
        mesh=mesh,
    )


def tiny_reinforce(mesh=None, actor=None):
    actor = actor or gru_actor(1, 1, 3)
    estimators = {
        name: reinforce(environment, actor, HEAD, num_groups=16, mesh=mesh)
        for name, environment in {"short": walk(4, 8), "long": walk(4, 16)}.items()
    }
    learner = gradient_learner(average_estimators(estimators), optax.adam(0.01))
    return actor, with_critic(learner, HEAD, walk(4, 8))


LEARNERS = {"ppo": tiny_ppo, "reinforce": tiny_reinforce}


@pytest.mark.parametrize("name", LEARNERS)
def test_two_devices_do_as_one(name):
    mesh = jax.make_mesh((2,), ("population",), axis_types=(AxisType.Auto,))
    found = []
    for devices in (None, mesh):
        actor, learner = LEARNERS[name](devices)
        state = learner.init(jax.random.key(0), actor.init(jax.random.key(1)))
        step = jax.jit(learner.step)
        for k in range(4):
            state, metrics = step(jax.random.key(k), state, learner.data)
        found.append((state, metrics))
    for x, y in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LEARNERS)
def test_stopped_and_resumed_is_bit_identical(name, tmp_path):
    def run(folder, stops):
        actor, learner = LEARNERS[name]()
        run = RunFolder.open(tmp_path / folder, {}, resume=(tmp_path / folder).exists())
        return learner, fit(
            jax.random.key(0),
            learner,
            actor.init(jax.random.key(1)),
            num_steps=12,
            log_every=3,
            checkpoint_every=3,
            run=run,
            should_stop=stops,
        )

    _, whole = run("whole", None)
    counter = itertools.count(1)
    _, part = run("parts", lambda: next(counter) == 2)
    assert part.step == 6
    learner, resumed = run("parts", None)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(x, y)
    assert (tmp_path / "whole/metrics.jsonl").read_text().count("\n") == 4
    assert jax.tree.structure(learner.theta(resumed)) == jax.tree.structure(
        gru_actor(1, 1, 3).init(jax.random.key(0))
    )


@pytest.mark.parametrize("name", LEARNERS)
def test_learning_earns_more(name):
    actor, learner = LEARNERS[name](actor=LINEAR)
    state = learner.init(jax.random.key(0), actor.init(jax.random.key(1)))
    step = jax.jit(learner.step)
    for k in range(100):
        state, _ = step(jax.random.key(k), state, learner.data)
    before, after = (
        expected_return(theta, HEAD.spread(), 16)
        for theta in (actor.init(jax.random.key(1)), learner.theta(state))
    )
    assert after > before + 0.5 * abs(before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, discount=1.5), "`discount` must be in"),
        (lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, baseline="mean"), "`baseline` must be"),
        (
            lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, group_size=3),
            "`group_size` must be even",
        ),
        (lambda e: reinforce(e, LINEAR, HEAD, num_groups=0), "`num_pairs` must be at least 1"),
        (lambda e: ppo(e, minibatches=3), "`minibatches` must divide the 4 groups; got 3.*=4"),
        (lambda e: ppo(e, epochs=0), "`epochs` must be at least 1"),
        (lambda e: ppo(e, trace=2.0), "`trace` must be in"),
        (lambda e: ppo(e, clip_ratio=0.0), "`clip_ratio` must be positive"),
        (lambda e: ppo(e, discount=-0.1), "`discount` must be in"),
        (lambda e: ppo(e, entropy_weight=np.nan), "`entropy_weight` must be finite.*got nan"),
        (
            lambda e: reinforce(e, LINEAR, HEAD, num_groups=2, entropy_weight=-1.0),
            "`entropy_weight` must be finite and not negative; got -1.0",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make(walk(2))


def ppo(environment, **settings):
    return ppo_learner(
        {"walk": environment},
        LINEAR,
        HEAD,
        optax.adam(0.01),
        num_pairs=4,
        settings=PPOSettings(**settings),
    )


def test_actor_critic_is_what_is_trained():
    theta = theta_for(walk(2))
    assert isinstance(theta, ActorCritic)
    seen = walk(2).observe(walk(2).start(jax.random.key(0)))
    assert value_of(theta.critic, seen) == 0.0


def test_the_critic_goes_by_what_an_agent_sees_all_see_on_average_and_it_alone_sees():
    """One layer that multiplies the three by 1, 10 and 100; two agents, two decisions."""
    critic = {"w0": jnp.array([[1.0], [10.0], [100.0]]), "b0": jnp.array([0.5])}
    seen = Observation(
        agents=jnp.array([[[1.0], [3.0]], [[-1.0], [0.0]]]), critic=jnp.array([[2.0], [-3.0]])
    )
    expected = [[1.0 + 20.0 + 200.5, 3.0 + 20.0 + 200.5], [-1.0 - 5.0 - 299.5, -5.0 - 299.5]]
    np.testing.assert_allclose(value_of(critic, seen), expected, rtol=1e-6)
