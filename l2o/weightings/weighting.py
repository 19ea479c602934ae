"""What rules have in common that move the weights of tasks while meta-training goes on.

Every task is trained in every outer step, so weights stand in the mean of the meta-gradients in the
place of chances of being drawn: the expectation is the same, and nothing is left to chance. Rules
compare the meta-losses of tasks, which must be on one scale: `Objective(normalize=True)` divides by
`Task.loss_scale`, `Objective(summary="log")` compares logarithms.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

WeightingState = Any


@dataclass(frozen=True, eq=False)
class Weighting:
    """Rule that moves the weights of tasks, as pure functions.

    Attributes:
        init: Function `(weights) -> state` of the weights that users give, shape (tasks,), which
            sum to 1.
        weights: Function `(state) -> weights`, shape (tasks,), not negative, with sum 1.
        update: Function `(state, losses) -> state` of the meta-losses of an outer step, shape
            (tasks,), NaN of a task of which there is none.
    """

    init: Callable[[jax.Array], WeightingState]
    weights: Callable[[WeightingState], jax.Array]
    update: Callable[[WeightingState, jax.Array], WeightingState]


def check_floor(floor: float) -> None:
    """Raise a `ValueError` unless a share that weights keep of the given ones is in [0, 1]."""
    if not 0 <= floor <= 1:
        raise ValueError(f"`floor` must be from 0 to 1; got {floor}. Try floor=0.1.")
