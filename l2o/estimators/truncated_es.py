"""Truncated evolution strategies: antithetic ES within a window, from a shared state.

Both members start from the same inner state, so a loss is credited to this window's perturbation
alone and what it does to later windows is not seen: biased, short-sighted, and cheap in variance.
    g = 1/(2 σ²) ε (mean of ℓ⁺ - ℓ⁻ over the window)
"""

from typing import Unpack

import jax

from l2o.estimators.antithetic import (
    ALIKE,
    EvolutionOptions,
    PairOutcome,
    antithetic_estimator,
    draw_perturbation,
    pair_outcome,
    plus_member,
    unroll_pair,
)
from l2o.estimators.estimator import Estimator
from l2o.problem import InnerState, Problem, given_up
from l2o.task import Data, Key


def truncated_es(problem: Problem, **options: Unpack[EvolutionOptions]) -> Estimator:
    """Truncated ES: low variance, biased when the horizon is longer than the window.

    The next window goes on from the member at theta + ε.

    Args:
        problem: what to unroll.
        **options: see `EvolutionOptions`.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, `std` <= 0, or
            `shaping` is unknown.
    """

    def init_pair(problem: Problem, key: Key, theta: jax.Array) -> InnerState:
        return problem.init(key, theta)

    def estimate_pair(
        problem: Problem,
        key: Key,
        theta: jax.Array,
        state: InnerState,
        std: jax.Array | float,
        data: Data,
    ) -> tuple[PairOutcome, InnerState]:
        k_perturbation, k_unroll = jax.random.split(key)
        perturbation = draw_perturbation(k_perturbation, theta, std)
        both, window = unroll_pair(problem, k_unroll, theta, perturbation, state, data, ALIKE)
        return pair_outcome(window, perturbation, std), plus_member(both)

    return antithetic_estimator(
        problem,
        init_pair,
        estimate_pair,
        give_up=given_up,
        num_steps=problem.window,
        **options,
    )
