"""Evolution strategies over whole runs: unbiased, and one outer step a run.

    g = 1/(2 σ²) ε (L(θ+ε) - L(θ-ε))
with the cost L of a whole run, both members from the same start on the same draws (Salimans, Ho,
Chen, Sidor, Sutskever 2017, antithetic form).
"""

from typing import Unpack

import jax

from l2o.estimators.antithetic import (
    EvolutionOptions,
    PairOutcome,
    antithetic_estimator,
    both_signs,
    draw_perturbation,
    pair_outcome,
)
from l2o.estimators.estimator import Estimator
from l2o.problem import Problem, unroll_run
from l2o.task import Data, Key


def full_es(problem: Problem, **options: Unpack[EvolutionOptions]) -> Estimator:
    """Full ES: every pair starts anew and runs to its horizon in each estimate.

    Where horizons are drawn, every run counts the same, whatever its length, and as many steps are
    computed as the longest has.

    Args:
        problem: what to unroll.
        **options: see `EvolutionOptions`.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, `std` <= 0, or
            `shaping` is unknown.
    """

    def estimate_pair(
        problem: Problem,
        key: Key,
        theta: jax.Array,
        state: tuple[()],
        std: jax.Array | float,
        data: Data,
    ) -> tuple[PairOutcome, tuple[()]]:
        k_perturbation, k_run = jax.random.split(key)
        perturbation = draw_perturbation(k_perturbation, theta, std)
        thetas = both_signs(theta, perturbation)
        window = jax.vmap(unroll_run, (None, None, 0, None))(problem, k_run, thetas, data)
        return pair_outcome(window, perturbation, std), state

    return antithetic_estimator(
        problem,
        lambda problem, key, theta: (),
        estimate_pair,
        give_up=lambda state: state,
        num_steps=problem.horizon,
        **options,
    )
