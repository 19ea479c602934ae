"""How much better than expected a decision was, in windows that are cut out of longer episodes.

A window's end is not an episode's end: what would have come is bootstrapped from the value of the
state it was left in. Where an episode ends, nothing comes.
"""

from typing import Literal

import jax
import jax.numpy as jnp

ReturnBaseline = Literal["antithetic", "leave_one_out", "value"]


def generalized_advantages(
    rewards: jax.Array,
    values: jax.Array,
    last_value: jax.Array,
    done: jax.Array,
    *,
    discount: float,
    trace: float,
) -> jax.Array:
    """Generalized advantage estimates (Schulman et al. 2016), shape (decisions, ...).

        δ_t = r_t + γ (1 - d_t) V_{t+1} - V_t,   A_t = δ_t + γ λ (1 - d_t) A_{t+1}

    With `trace` 1 they are the return to go, bootstrapped, less the value.

    Args:
        rewards: shape (decisions, ...), for instance one for each agent.
        values: of the state before each decision, of the same shape.
        last_value: of the state after the last decision, shape (...).
        done: whether the episode ended with each decision, shape (decisions,).
        discount: γ.
        trace: λ.
    """
    goes_on = 1.0 - done.astype(rewards.dtype).reshape(-1, *[1] * (rewards.ndim - 1))
    following = jnp.concatenate([values[1:], last_value[None]])
    deltas = rewards + discount * goes_on * following - values

    def step(later: jax.Array, now: tuple[jax.Array, jax.Array]):
        delta, goes_on = now
        advantage = delta + discount * trace * goes_on * later
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros_like(last_value), (deltas, goes_on), reverse=True)
    return advantages


def subtract_baseline(
    baseline: ReturnBaseline, returns: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
    """Returns to go less what was to be expected; all of shape (groups, runs, decisions, ...).

    No baseline depends on the actions of the run it is subtracted from, so none adds a bias:
        antithetic     the mean of all other groups. That the two runs of a group were given
                       opposite noise is what removes the variance that they share: while their
                       states are alike, so are the scores but for the sign, and what is left is the
                       difference of their returns. (Subtracting the other run's return would be
                       biased, as it depends on the same noise.)
        leave_one_out  the mean of the other runs of the group, which share the instance, initial
                       parameters and batches, and act independently
        value          what the critic says

    Where there is nobody else, nothing is subtracted. `mask` is False where nothing was decided.
    """
    if baseline == "value":
        return returns - values
    counted = jnp.where(mask, returns, 0.0)
    counts = jnp.broadcast_to(mask, returns.shape).astype(returns.dtype)
    if baseline == "leave_one_out":
        total, number = (jnp.sum(x, axis=1, keepdims=True) for x in (counted, counts))
        total, number = total - counted, number - counts
    else:
        of_group, in_group = (jnp.sum(x, axis=1, keepdims=True) for x in (counted, counts))
        total = jnp.sum(of_group, axis=0, keepdims=True) - of_group
        number = jnp.sum(in_group, axis=0, keepdims=True) - in_group
    return returns - total / jnp.maximum(number, 1.0)


def standardized(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Advantages with mean 0 and standard deviation 1 over what counts."""
    mask = jnp.broadcast_to(mask, advantages.shape)
    number = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, advantages, 0.0)) / number
    variance = jnp.sum(jnp.where(mask, jnp.square(advantages - mean), 0.0)) / number
    return (advantages - mean) / (jnp.sqrt(variance) + 1e-8)
