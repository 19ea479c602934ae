"""A closed-form problem for policy gradients.

The problem: s_{t+1} = 0.9 s_t + a_t from s_0 ~ N(1, 0.5²), paid -½ s_{t+1}² + c for a context c
that the runs of a group share; the agent sees s_t and acts with a ~ N(w s + b, σ²). The first two
moments of s follow a recursion, whose gradient is exact.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.policies.heads import bounded_log_std, make_head
from l2o.policies.policy import Actor
from l2o.rl.environment import Environment, Observation, Outcome
from l2o.rl.reinforce import estimate_advantages
from l2o.rl.rollout import RolloutWorker, first_actor_critic, rollout_worker

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


def walk(num_actions: int, horizon: int | None = None, spoil=None, far=np.inf) -> Environment:
    """The problem, in windows of `num_actions`.

    It records what the last step drew and what was done. `spoil` changes rewards; beyond `far` an
    episode ends early.
    """
    horizon = horizon or num_actions

    def start(key):
        k_s, k_context = jax.random.split(key)
        s = 1.0 + 0.5 * jax.random.normal(k_s)
        nothing = jnp.zeros(()), jnp.zeros((1, 1))
        return Walk(s, 3.0 * jax.random.normal(k_context), jnp.int32(0), *nothing)

    def init(key):
        k_start, k_stage = jax.random.split(key)
        stage = num_actions * jax.random.randint(k_stage, (), 0, horizon // num_actions)
        return start(k_start)._replace(step=stage)

    def step(key, state, action, data):
        del data
        s = 0.9 * state.s + action[0, 0]
        reward = -0.5 * s**2 + state.context
        if spoil is not None:
            reward = spoil(reward, state)
        after = Walk(s, state.context, state.step + 1, jax.random.uniform(key), action)
        done = (after.step >= horizon) | (jnp.abs(s) > far)
        return after, Outcome(
            reward, reward[None], reward[None], done, jnp.float32(1.0), jnp.bool_(False)
        )

    return Environment(
        init=init,
        start=start,
        enter=lambda key, state, data: state,
        observe=lambda state: Observation(state.s[None, None], jnp.ones(1)),
        step=step,
        num_actions=num_actions,
        steps_per_action=1,
        reward_names=("cost",),
    )


def expected_return(theta, log_std, num_actions):
    mean, variance, total = 1.0, 0.25, 0.0
    for _ in range(num_actions):
        mean = (0.9 + theta["w"]) * mean + theta["b"]
        variance = (0.9 + theta["w"]) ** 2 * variance + jnp.exp(2.0 * bounded_log_std(log_std)[0])
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


def compiled_worker(*args, **kwargs) -> RolloutWorker:
    """A worker whose functions are one program each, not one for each of their operations."""
    worker = rollout_worker(*args, **kwargs)
    return dataclasses.replace(worker, init=jax.jit(worker.init), collect=jax.jit(worker.collect))


def window_of(environment, theta):
    population = compiled_worker(
        environment, LINEAR, HEAD, num_groups=8, group_size=1, antithetic=False
    )
    state = population.init(jax.random.key(0))
    _, rollout, _ = population.collect(jax.random.key(1), theta, state, ())
    return rollout, advantages_of(theta, rollout, gae_lambda=0.95)


def advantages_of(theta, rollout, *, discount=1.0, gae_lambda=1.0):
    """The advantages of a rollout, as one program."""
    estimate = functools.partial(estimate_advantages, discount=discount, gae_lambda=gae_lambda)
    return jax.jit(estimate)(theta, rollout)
