"""What a policy for several rewards is told: the share of each in what it is paid.

In training the shares of each run are drawn uniformly from all that sum to 1 (a flat Dirichlet
distribution), as in multi-objective reinforcement learning with conditioned policies (Abels et al.
2019); whoever uses the policy chooses them.
"""

import math
from collections.abc import Sequence
from numbers import Real

import jax
import jax.numpy as jnp

from l2o.task import Key


def shares_of(objectives: Sequence[str], preference: Sequence[float]) -> tuple[float, ...]:
    """Check the rewards that a policy is told the shares of, and compute the shares.

    >>> shares_of(("log_loss", "examples"), (3.0, 1.0))
    (0.75, 0.25)

    Args:
        objectives: Names of rewards; none, or at least two.
        preference: Weight of each, not negative, at least one positive; equal if there are none.

    Raises:
        ValueError: If that is not what they are.
    """
    if isinstance(objectives, str):
        raise ValueError(
            f'`objectives` must be a list of rewards; got {objectives}. Try ["log_loss", "loss"].'
        )
    names = " ".join(objectives)
    if len(objectives) == 1 or len(set(objectives)) < len(objectives):
        raise ValueError(
            f"`objectives` must be at least two rewards that differ; got {names}. "
            "Try log_loss examples, or none."
        )
    if len(preference) == 0:
        return (1.0 / len(objectives),) * len(objectives) if objectives else ()
    if len(preference) != len(objectives):
        raise ValueError(
            f"`preference` must be a weight for each of {names or 'no objectives'}; got "
            f"{len(preference)}. Leave it out for equal ones."
        )
    is_weight = [isinstance(weight, Real) and 0 <= weight < math.inf for weight in preference]
    if not all(is_weight) or not sum(preference) > 0:
        raise ValueError(
            "`preference` must be weights of which none is negative and one is above 0; got "
            f"{', '.join(map(str, preference))}. Leave it out for equal ones."
        )
    scaled = [float(weight / max(preference)) for weight in preference]
    return tuple(weight / sum(scaled) for weight in scaled)


def draw_preference(key: Key, num_objectives: int) -> jax.Array:
    """Draw shares that sum to 1, uniformly, shape (objectives,)."""
    if num_objectives == 0:
        return jnp.zeros(0, jnp.float32)
    return jax.random.dirichlet(key, jnp.ones(num_objectives, jnp.float32))


def told(observation: jax.Array, preference: jax.Array | Sequence[float]) -> jax.Array:
    """Append the shares to what each agent observes, shape (agents, features + objectives)."""
    shares = jnp.asarray(preference, jnp.float32)
    tiled = jnp.broadcast_to(shares[None], (observation.shape[0], shares.shape[0]))
    return jnp.concatenate([observation, tiled], axis=-1)
