"""Budgets, and the projection of any action onto what they allow.

An action a is a number in [-1, 1] for each group of weights. It asks for the share

    f = sigmoid(t + REACH a)

of what the group may have beyond its least, and t, the same for all groups, is the largest with
which the whole costs no more than the limit. So zeros treat all groups alike, a higher action never
gets less of the rounded-down shares, and whatever is asked for, the budget is kept. What rounding
down leaves over goes to the groups in the order of their actions, as far as whole numbers go.
Everything is computed in integers, for which costs above 2^30 are counted in larger units, rounded
up.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

REACH = 4.0
"""Logits by which an action of 1 raises a group's share over that of an action of 0."""

LARGEST = 2**30
"""Largest total of a cost, so that sums of int32 never overflow."""

STEPS = 40
"""Bisections of the common logit between -40 and 40, beyond which float32 tells no more apart."""


@dataclass(frozen=True, eq=False)
class Budget:
    """What groups of weights may have, what that costs, and what it may cost at most.

    Attributes:
        names: Name of each group.
        unit: What is counted: "parameters", "multiply-adds" or "bits".
        lowest: Least count of each group, shape (groups,), int32.
        highest: Count of each group in the whole network, shape (groups,), int32.
        cost: Function `(counts) -> cost`, an int32 scalar, which no count lowers; traceable.
        limit: What the counts may cost at most.
        scale: Number of units that a cost of one stands for; above 1 only where int32 would not
            hold the cost of the whole network.
    """

    names: tuple[str, ...]
    unit: str
    lowest: np.ndarray
    highest: np.ndarray
    cost: Callable[[jax.Array], jax.Array]
    limit: int
    scale: int = 1

    def spent(self, counts: np.ndarray | jax.Array) -> int:
        """Cost of counts."""
        return int(self.cost(jnp.asarray(counts, jnp.int32)))

    @property
    def whole(self) -> int:
        """Cost of the whole network."""
        return self.spent(self.highest)


def make_budget(
    names: tuple[str, ...],
    unit: str,
    lowest: np.ndarray,
    highest: np.ndarray,
    cost: Callable[[jax.Array], jax.Array],
    limit: int,
    *,
    argument: str,
    given: float,
    share: Callable[[int], float],
    scale: int = 1,
) -> Budget:
    """Make a budget that the smallest network keeps.

    Args:
        names: As in `Budget`.
        unit: As in `Budget`.
        lowest: As in `Budget`.
        highest: As in `Budget`.
        cost: As in `Budget`.
        limit: As in `Budget`.
        argument: Argument that the limit came from, for errors.
        given: Its value.
        share: Function from a cost in units to the value of that argument, for errors.
        scale: As in `Budget`.

    Raises:
        ValueError: If the smallest network costs more than the limit.
    """
    smallest = int(cost(jnp.asarray(lowest, jnp.int32)))
    if smallest > limit:
        needed = smallest * scale
        enough = math.ceil(share(needed) * 1e4) / 1e4
        raise ValueError(
            f"`{argument}` must leave room for the smallest network, {needed} {unit}; got "
            f"{given:g}, which is {limit * scale}. Try {argument}={enough:g}."
        )
    return Budget(
        names,
        unit,
        np.asarray(lowest, np.int32),
        np.asarray(highest, np.int32),
        cost,
        limit,
        scale,
    )


def in_whole_units(costs: np.ndarray, total: int, limit: int) -> tuple[np.ndarray, int, int]:
    """Count costs and a limit in a unit in which no sum overflows; costs are rounded up.

    >>> in_whole_units(np.array([1, 9]), 1000, 500)
    (array([1, 9]), 500, 1)

    Args:
        costs: Cost of one weight of each group, whole numbers.
        total: Cost of the whole network.
        limit: What may be spent.

    Returns:
        Costs and limit in that unit, and how many of the old units it is.
    """
    scale = -(-total // LARGEST)
    return -(-costs // scale), limit // scale, scale


def project(budget: Budget, action: jax.Array) -> jax.Array:
    """Project an action onto the counts that the budget allows; traceable.

    >>> budget = Budget(
    ...     ("a", "b"), "parameters", np.array([1, 1]), np.array([100, 50]), jnp.sum, limit=15
    ... )
    >>> project(budget, jnp.zeros(2)).tolist(), project(budget, jnp.array([-1.0, 1.0])).tolist()
    ([10, 5], [1, 14])

    Args:
        budget: Budget.
        action: Wish of each group, higher for more, in [-1, 1], shape (groups,).

    Returns:
        Counts, shape (groups,), int32, whose cost is at most the limit.
    """
    lowest, highest = jnp.asarray(budget.lowest), jnp.asarray(budget.highest)
    action = jnp.clip(jnp.nan_to_num(action), -1.0, 1.0)
    room = (highest - lowest).astype(jnp.float32)

    def counts_at(logit: jax.Array) -> jax.Array:
        wanted = jnp.floor(room * jax.nn.sigmoid(logit + REACH * action)).astype(jnp.int32)
        return jnp.minimum(lowest + wanted, highest)

    def halve(_: int, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        fits = budget.cost(counts_at(middle)) <= budget.limit
        return jnp.where(fits, middle, low), jnp.where(fits, high, middle)

    low, _ = jax.lax.fori_loop(0, STEPS, halve, (jnp.float32(-40.0), jnp.float32(40.0)))
    return spend_rest(budget, counts_at(low), jnp.argsort(-action))


def spend_rest(budget: Budget, counts: jax.Array, order: jax.Array) -> jax.Array:
    """Raise counts one group after the other, each as far as the budget goes; traceable.

    Args:
        budget: Budget.
        counts: Counts within the budget, shape (groups,), int32.
        order: Indices of the groups, those first that are raised first, shape (groups,).
    """
    highest = jnp.asarray(budget.highest)
    num_bits = LARGEST.bit_length() - 1

    def raise_group(i: int, counts: jax.Array) -> jax.Array:
        group = order[i]

        def try_bit(j: int, counts: jax.Array) -> jax.Array:
            more = counts.at[group].add(jnp.int32(1) << (num_bits - 1 - j))
            fits = (more[group] <= highest[group]) & (budget.cost(more) <= budget.limit)
            return jnp.where(fits, more, counts)

        return jax.lax.fori_loop(0, num_bits, try_bit, counts)

    return jax.lax.fori_loop(0, len(budget.names), raise_group, counts)
