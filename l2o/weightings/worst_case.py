"""Weights that follow the worst task, by exponentiated gradient ascent.

    q_i ← q_i exp(η L_i) / Σ_j q_j exp(η L_j)

so that theta descends and q ascends Σ q_i L_i, the smooth form of the largest meta-loss L_i (Sagawa
et al. 2020, group distributionally robust optimization; Collins et al. 2020 for meta-learning).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from l2o.weightings.weighting import Weighting, check_floor


class WorstCaseState(NamedTuple):
    """State of the rule.

    Attributes:
        given: Weights that users gave, shape (tasks,).
        logits: Logarithms of q, up to a constant, shape (tasks,).
    """

    given: jax.Array
    logits: jax.Array


def worst_case(rate: float = 0.05, floor: float = 0.1) -> Weighting:
    """Move weights to the tasks with the largest meta-losses.

    >>> import jax.numpy as jnp, l2o
    >>> rule = l2o.worst_case(rate=1.0, floor=0.0)
    >>> state = rule.update(rule.init(jnp.array([0.5, 0.5])), jnp.array([jnp.log(3.0), 0.0]))
    >>> [round(float(weight), 3) for weight in rule.weights(state)]
    [0.75, 0.25]

    Args:
        rate: Step size η, for each unit of the meta-loss and outer step.
        floor: Share of the weights that stays as it was given, so that no task is forgotten.

    Raises:
        ValueError: If an argument is outside its range.
    """
    if not 0 < rate < float("inf"):
        raise ValueError(f"`rate` must be positive and finite; got {rate}. Try rate=0.05.")
    check_floor(floor)

    def weights(state: WorstCaseState) -> jax.Array:
        return floor * state.given + (1.0 - floor) * jax.nn.softmax(state.logits)

    def update(state: WorstCaseState, losses: jax.Array) -> WorstCaseState:
        # What is not known counts as the others' mean, which leaves its share as it is.
        known = jnp.where(jnp.isfinite(losses), losses, jnp.nan)
        step = rate * (known - jnp.nanmean(known))
        logits = state.logits + jnp.nan_to_num(step, nan=0.0)
        return state._replace(logits=logits - jnp.max(logits))

    return Weighting(lambda given: WorstCaseState(given, jnp.log(given)), weights, update)
