"""A small policy and a small task, and episodes of them."""

import itertools

import jax
import jax.numpy as jnp
import optax

from l2o.policies.scheduler import scheduler
from l2o.tasks.digits import digits
from l2o.tasks.image_mlp import image_mlp


def tiny_task():
    return image_mlp("tiny", digits(), (4,), batch_size=16)


HORIZON, WINDOW, INTERVAL = 20, 10, 5


def small_policy(**changes):
    return scheduler(**{"action_interval": INTERVAL, "hidden_size": 4, **changes})


def noisy_theta(lopt, scale=0.5, seed=0):
    theta = lopt.init(jax.random.key(seed))
    noise = optax.tree.random_like(jax.random.key(seed + 1), theta)
    return jax.tree.map(lambda t, z: t + scale * z, theta, noise)


def with_params(state, params):
    return state._replace(run=state.run._replace(params=params))


def at_step(state, step):
    return state._replace(run=state.run._replace(step=jnp.int32(step)))


def begin(environment, k_start, k_enter):
    """A run that has just begun; one program, not one for each operation."""

    @jax.jit
    def start_and_enter(k_start, k_enter, data):
        return environment.enter(k_enter, environment.start(k_start), data)

    return start_and_enter(k_start, k_enter, environment.data)


def episode(environment, policy, theta, key, *, shift=0.0):
    """A whole run with the policy's most likely actions; states and outcomes."""
    k_start, k_enter, k_steps = jax.random.split(key, 3)
    state = begin(environment, k_start, k_enter)
    if policy.objectives:
        state = state._replace(preference=jnp.asarray(policy.preference))
    carry = policy.actor.start(environment.observe(state).agents.shape[0])
    states, outcomes = [state], []
    step = jax.jit(environment.step)

    @jax.jit
    def act(state, carry):
        outputs, carry = policy.actor.apply(theta, environment.observe(state).agents, carry)
        return policy.head.squash(policy.head.mode(outputs)) + shift, carry

    for k in itertools.count():
        action, carry = act(state, carry)
        state, outcome = step(jax.random.fold_in(k_steps, k), state, action, environment.data)
        states.append(state)
        outcomes.append(outcome)
        if outcome.done:
            return states, outcomes
