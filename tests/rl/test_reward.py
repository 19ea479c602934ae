"""Rewards for actions."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_policies import (
    HORIZON,
    INTERVAL,
    WINDOW,
    begin,
    episode,
    noisy_theta,
    small_policy,
    tiny_task,
    with_params,
)
from user_module import bowl

from l2o.objective import Objective
from l2o.policies.scheduler import scheduler
from l2o.problem import inner_problem, unroll_run
from l2o.rl.environment import training_environment
from l2o.rl.reward import LOG_FLOOR, Reward, check_reward, measure


@pytest.fixture(scope="module")
def task():
    return tiny_task()


def draws():
    """A task whose loss is the number between 0 and 1 that its batch is, whatever is learned."""
    return dataclasses.replace(
        bowl(),
        batch=lambda key, instance, data, split: jax.random.uniform(key),
        loss=lambda params, batch, instance: batch + 0.0 * jnp.sum(params["x"]),
        loss_scale=1.0,
    )


def test_log_reward_telescopes(task):
    lopt = small_policy()
    environment = training_environment(task, lopt.policy, horizon=HORIZON, window=WINDOW)
    theta = noisy_theta(lopt)
    states, outcomes = episode(environment, lopt.policy, theta, jax.random.key(0))
    assert len(outcomes) == HORIZON // INTERVAL
    total = sum(o.reward for o in outcomes)
    ends = [np.log(s.loss + LOG_FLOOR) for s in (states[0], states[-1])]
    np.testing.assert_allclose(total, ends[0] - ends[1], atol=1e-5)
    assert abs(total) > 0.01


def test_metrics_telescope_and_are_weighted(task):
    lopt = small_policy()
    reward = Reward(("accuracy", "macro_f1"), weights=(2.0, 0.5), on="valid")
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=reward
    )
    theta = noisy_theta(lopt)
    states, outcomes = episode(environment, lopt.policy, theta, jax.random.key(0))
    gains = sum(o.rewards for o in outcomes)
    np.testing.assert_allclose(gains, states[-1].potentials - states[0].potentials, atol=1e-5)
    np.testing.assert_allclose(
        sum(o.reward for o in outcomes), 2.0 * gains[0] + 0.5 * gains[1], rtol=1e-5
    )
    assert np.all(np.abs(states[-1].potentials - 0.5) <= 0.5)


def test_loss_reward_is_the_cost_of_evolution_strategies(task):
    """The mean over runs of the same distribution; and the same parts train them."""
    lopt = small_policy()
    theta = noisy_theta(lopt)
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward(("loss",))
    )
    problem = inner_problem(
        task, lopt, horizon=HORIZON, window=WINDOW, objective=Objective(normalize=True)
    )
    number = 200

    def total(key):
        k_start, k_enter, k_steps = jax.random.split(key, 3)
        state = environment.enter(k_enter, environment.start(k_start), environment.data)

        def decide(state, key):
            outputs, _ = lopt.policy.actor.apply(theta, environment.observe(state).agents, ())
            return environment.step(key, state, lopt.policy.head.mode(outputs), environment.data)

        _, outcomes = jax.lax.scan(decide, state, jax.random.split(k_steps, HORIZON // INTERVAL))
        return jnp.sum(outcomes.reward)

    keys = jax.random.split(jax.random.key(0), number)
    returns = jax.jit(jax.vmap(total))(keys)
    cost = jax.jit(jax.vmap(lambda k: jnp.mean(unroll_run(problem, k, theta, problem.data).loss)))
    costs = cost(jax.random.split(jax.random.key(1), number))
    error = np.hypot(np.std(returns), np.std(costs)) / number**0.5
    assert abs(np.mean(returns) + np.mean(costs)) < 4 * error
    assert error < 0.02


def test_examples_reward_is_what_was_not_used(task):
    lopt = small_policy(hyperparameters=("batch_fraction",))
    reward = Reward(("log_loss", "examples"), weights=(1.0, 2.0))
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=reward
    )
    shrinking = {**lopt.init(jax.random.key(0)), "b2": jnp.array([0.0, -1.0])}
    states, outcomes = episode(environment, lopt.policy, shrinking, jax.random.key(3))
    at = np.exp(-0.3 * np.arange(5))  # the fraction after each action, in force one step later
    used = sum((at[k] + 4 * at[k + 1]) / HORIZON for k in range(4))
    np.testing.assert_allclose(sum(o.rewards[1] for o in outcomes), -used, rtol=1e-5)
    gained = states[-1].potentials[0] - states[0].potentials[0]
    np.testing.assert_allclose(sum(o.reward for o in outcomes), gained - 2.0 * used, rtol=1e-4)


def test_diverging_saves_no_examples(task):
    lopt = small_policy(hyperparameters=("batch_fraction",))
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward(("examples",))
    )
    state = environment.enter(
        jax.random.key(1), environment.start(jax.random.key(0)), environment.data
    )
    broken = with_params(state, jax.tree.map(lambda p: jnp.nan * p, state.run.params))
    _, outcome = environment.step(jax.random.key(2), broken, jnp.zeros((1, 2)), environment.data)
    np.testing.assert_allclose(outcome.rewards, [-1.0], rtol=1e-6)
    _, outcome = environment.step(jax.random.key(2), state, jnp.zeros((1, 2)), environment.data)
    np.testing.assert_allclose(outcome.rewards, [-INTERVAL / HORIZON], rtol=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "log_loss"])
def test_a_run_of_nan_is_paid_a_finite_price(task, name):
    lopt = small_policy()
    environment = training_environment(
        task, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward((name,))
    )
    state = environment.enter(
        jax.random.key(1), environment.start(jax.random.key(0)), environment.data
    )
    broken = with_params(state, jax.tree.map(lambda p: jnp.nan * p, state.run.params))
    _, outcome = environment.step(jax.random.key(2), broken, jnp.zeros((1, 1)), environment.data)
    assert outcome.done and np.isfinite(outcome.reward) and outcome.reward <= -1.0
    worst = {"accuracy": 0.0, "log_loss": -np.log(task.loss_cap + LOG_FLOOR)}[name]
    np.testing.assert_allclose(outcome.rewards[0], worst - state.potentials[0], rtol=1e-5)


def test_a_run_that_diverges_with_a_finite_loss_is_paid_the_worst(task):
    """It may still be right by chance, and had kept its accuracy."""
    low = dataclasses.replace(task, loss_cap=0.5)
    lopt = small_policy(learning_rate=1e-4)
    reward = Reward(("accuracy", "macro_f1", "log_loss"))
    environment = training_environment(
        low, lopt.policy, horizon=HORIZON, window=WINDOW, reward=reward
    )
    state = begin(environment, jax.random.key(0), jax.random.key(1))
    step = jax.jit(
        lambda s: environment.step(jax.random.key(2), s, jnp.zeros((1, 1)), environment.data)
    )
    well, outcome = step(state)
    assert not outcome.done and np.all(well.potentials[:2] > 0.0)
    # It has diverged from twice its first loss on, so now it has.
    after, outcome = step(state._replace(first_loss=0.4 * state.first_loss))
    assert outcome.done and np.isfinite(after.loss)
    worst = np.array([0.0, 0.0, -np.log(low.loss_cap + LOG_FLOOR)])
    np.testing.assert_allclose(outcome.rewards, worst - state.potentials, rtol=1e-5, atol=1e-6)


def test_a_reward_is_measured_on_other_batches_than_those_of_the_interval():
    policy = scheduler(action_interval=3).policy
    reward = Reward(("loss",), batches=3)
    environment = training_environment(draws(), policy, horizon=3, window=3, reward=reward)
    step = lambda k: environment.step(k, environment.start(k), jnp.zeros((1, 1)), ())
    after, outcome = jax.jit(jax.vmap(step))(jax.random.split(jax.random.key(0), 500))
    trained_on = -outcome.reward  # the mean of three draws, as what is measured is
    assert np.all(np.abs(trained_on - after.loss) > 1e-6)
    assert abs(np.corrcoef(trained_on, after.loss)[0, 1]) < 4 / 500**0.5


def test_each_batch_of_a_measurement_is_drawn_anew():
    """The variance of the mean of uniform draws falls as their number."""
    found = lambda number: jax.vmap(
        lambda key: measure(Reward(batches=number), draws(), key, {"x": jnp.zeros(3)}, None, ())[0]
    )(jax.random.split(jax.random.key(0), 1000))
    for number in (1, 4):
        assert abs(12 * number * np.var(found(number)) - 1.0) < 4 * (2 / 1000) ** 0.5


def test_a_loss_in_bfloat16_is_paid_in_float32(task):
    half = dataclasses.replace(
        task,
        loss=lambda params, batch, instance: task.loss(params, batch, instance).astype(
            jnp.bfloat16
        ),
    )
    lopt = small_policy()
    environment = training_environment(
        half, lopt.policy, horizon=HORIZON, window=WINDOW, reward=Reward(("loss", "log_loss"))
    )
    states, outcomes = episode(environment, lopt.policy, noisy_theta(lopt), jax.random.key(0))
    assert outcomes[0].rewards.dtype == states[1].loss.dtype == jnp.float32
    assert jax.tree.map(jnp.result_type, states[0]) == jax.tree.map(jnp.result_type, states[1])


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Reward(("recall",)), "got recall. Try log_loss, loss, examples, accuracy, macro_f1"),
        (Reward(()), "`reward` must name at least one"),
        (Reward(("loss", "loss")), "`reward` must differ"),
        (Reward(("loss",), weights=(1.0, 2.0)), "`reward.weights` must be one for each of 1"),
        (Reward(("loss",), weights=(-1.0,)), "`reward.weights` must be positive"),
        (Reward(batches=0), "`reward.batches` must be at least 1"),
        (Reward(penalty=-1.0), "`penalty` must not be negative"),
        (Reward(on="test"), "`reward.on` must be train or valid; got test"),
    ],
)
def test_bad_rewards(task, reward, message):
    with pytest.raises(ValueError, match=message):
        check_reward(reward, task)


def test_what_is_paid_must_have_a_worst_value(task):
    uncapped = dataclasses.replace(task, metric_caps={"accuracy": 0.0})
    check_reward(Reward(("accuracy",)), uncapped)
    with pytest.raises(ValueError, match=r"got macro_f1, which has none.*Add it to metric_caps"):
        check_reward(Reward(("macro_f1",)), uncapped)
    with pytest.raises(ValueError, match="`loss_cap` of task tiny must be finite"):
        check_reward(Reward(), dataclasses.replace(task, loss_cap=np.inf))
