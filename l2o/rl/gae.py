"""Advantages of actions, in windows that are cut out of longer episodes.

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
    gae_lambda: float,
) -> jax.Array:
    """Estimate generalized advantages (Schulman et al. 2016), shape (actions, ...).

        δ_t = r_t + γ (1 - d_t) V_{t+1} - V_t,   A_t = δ_t + γ λ (1 - d_t) A_{t+1}

    With `gae_lambda` 1 they are the return to go, bootstrapped, less the value.

    Args:
        rewards: Rewards, shape (actions, ...), for instance one for each agent.
        values: Values of the state before each action, of the same shape.
        last_value: Value of the state after the last action, shape (...).
        done: Whether the episode ended with each action, shape (actions,).
        discount: Discount γ of the reward of each later action.
        gae_lambda: Decay λ of later differences; 1 takes whole returns.
    """
    goes_on = 1.0 - done.astype(rewards.dtype).reshape(-1, *[1] * (rewards.ndim - 1))
    following = jnp.concatenate([values[1:], last_value[None]])
    deltas = rewards + discount * goes_on * following - values

    def step(later: jax.Array, now: tuple[jax.Array, jax.Array]):
        delta, goes_on = now
        advantage = delta + discount * gae_lambda * goes_on * later
        return advantage, advantage

    _, advantages = jax.lax.scan(step, jnp.zeros_like(last_value), (deltas, goes_on), reverse=True)
    return advantages


def subtract_baseline(
    baseline: ReturnBaseline, returns: jax.Array, values: jax.Array, mask: jax.Array
) -> jax.Array:
    """Subtract a baseline from returns to go; all of shape (groups, runs, actions, ...).

    No baseline depends on the actions of the run it is subtracted from, so none adds a bias. The
    runs of a group share the instance, initial parameters and batches:
        antithetic     the mean of the other pairs of the group; of all other groups, if a group is
                       one pair. Each pair was given opposite noise, so while the states of the two
                       are alike, what they share cancels in the gradient of the mean of a Gaussian,
                       whose score is odd in the noise; not in that of its log-std, whose score
                       is even. (Subtracting the partner's return would be biased: it depends on the
                       same noise.)
        leave_one_out  the mean of the other runs of the group, which act independently
        value          the value by the critic

    Where there is nobody else, nothing is subtracted. `mask` is False where nobody acted.
    """
    if baseline == "value":
        return returns - values
    counted = jnp.where(mask, returns, 0.0)
    counts = jnp.broadcast_to(mask, returns.shape).astype(returns.dtype)
    total, number = (without_own(baseline, x) for x in (counted, counts))
    return returns - total / jnp.maximum(number, 1.0)


def without_own(baseline: ReturnBaseline, values: jax.Array) -> jax.Array:
    """Sum values (groups, runs, ...) over the runs that may stand in the baseline of each."""
    if baseline == "leave_one_out":
        return jnp.sum(values, axis=1, keepdims=True) - values
    if values.shape[1] == 2:
        group = jnp.sum(values, axis=1, keepdims=True)
        return jnp.sum(group, axis=0, keepdims=True) - group
    pair = values[:, 0::2] + values[:, 1::2]
    return jnp.repeat(jnp.sum(pair, axis=1, keepdims=True) - pair, 2, axis=1)


def standardized(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Standardize advantages to mean 0 and standard deviation 1 over what counts."""
    mean, std = moments(advantages, mask)
    return (advantages - mean) / std


def moments(values: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute the mean and the standard deviation, a little above 0, over what counts."""
    mask = jnp.broadcast_to(mask, values.shape)
    number = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, values, 0.0)) / number
    variance = jnp.sum(jnp.where(mask, jnp.square(values - mean), 0.0)) / number
    return mean, jnp.sqrt(variance) + 1e-8
