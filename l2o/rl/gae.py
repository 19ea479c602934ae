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

    No baseline depends on the actions of the run it is subtracted from, so none adds a bias. The
    runs of a group share the instance, initial parameters and batches:
        antithetic     the mean of the other pairs of the group; of all other groups, if a group is
                       one pair. Each pair was given opposite noise, so while the states of the two
                       are alike, what they share cancels in the gradient of the mean of a Gaussian,
                       whose score is odd in the noise; not in that of its spread, whose score is
                       even. (Subtracting the partner's return would be biased: it depends on the
                       same noise.)
        leave_one_out  the mean of the other runs of the group, which act independently
        value          what the critic says

    Where there is nobody else, nothing is subtracted. `mask` is False where nothing was decided.
    """
    if baseline == "value":
        return returns - values
    counted = jnp.where(mask, returns, 0.0)
    counts = jnp.broadcast_to(mask, returns.shape).astype(returns.dtype)
    total, number = (without_own(baseline, x) for x in (counted, counts))
    return returns - total / jnp.maximum(number, 1.0)


def without_own(baseline: ReturnBaseline, values: jax.Array) -> jax.Array:
    """Sums of `values`, (groups, runs, ...), over what may stand in the baseline of each run."""
    if baseline == "leave_one_out":
        return jnp.sum(values, axis=1, keepdims=True) - values
    if values.shape[1] == 2:
        of_group = jnp.sum(values, axis=1, keepdims=True)
        return jnp.sum(of_group, axis=0, keepdims=True) - of_group
    of_pair = values[:, 0::2] + values[:, 1::2]
    return jnp.repeat(jnp.sum(of_pair, axis=1, keepdims=True) - of_pair, 2, axis=1)


def standardized(advantages: jax.Array, mask: jax.Array) -> jax.Array:
    """Advantages with mean 0 and standard deviation 1 over what counts."""
    mask = jnp.broadcast_to(mask, advantages.shape)
    number = jnp.maximum(jnp.sum(mask), 1)
    mean = jnp.sum(jnp.where(mask, advantages, 0.0)) / number
    variance = jnp.sum(jnp.where(mask, jnp.square(advantages - mean), 0.0)) / number
    return (advantages - mean) / (jnp.sqrt(variance) + 1e-8)
