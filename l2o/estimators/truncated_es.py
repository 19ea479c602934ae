"""Truncated evolution strategies: the gradient of one window, blind to what comes after.

Each pair carries one inner state. Both members train from it for a window, and
    g = 1/(2 σ²) ε (L(θ+ε) - L(θ-ε)),
with L the mean loss over the window; the state of the θ+ε member goes on. Biased towards steps
that pay off within the window (Metz et al. 2019), and the usual control for unbiased estimators.
"""

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from l2o.estimators.antithetic import (
    ALIKE,
    PairEstimate,
    antithetic_estimator,
    draw_perturbation,
    pair_estimate,
    unroll_pair,
)
from l2o.estimators.estimator import Estimator
from l2o.learned_optimizer import Theta
from l2o.problem import InnerState, Problem
from l2o.task import Data, Key


def es_gradient(
    delta: jax.Array, mask: jax.Array, perturbation: Theta, std: float | jax.Array
) -> Theta:
    """The gradient of the mean loss over a window from one pair.

    Args:
        delta: shape (window,), loss of θ+ε minus loss of θ-ε at each step.
        mask: shape (window,), False at steps that do not count.
        perturbation: ε, a tree like theta.
        std: σ.
    """
    weight = jnp.sum(jnp.where(mask, delta, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    return jax.tree.map(lambda e: weight * e / (2 * std**2), perturbation)


def truncated_es(
    problem: Problem, *, num_pairs: int, std: float, mesh: Mesh | None = None
) -> Estimator:
    """Truncated ES: low variance, biased when the horizon is longer than the window.

    Args:
        problem: what to unroll.
        num_pairs: antithetic pairs a window.
        std: σ, in units of theta.
        mesh: devices to spread the pairs over.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, or `std` <= 0.
    """

    def estimate_pair(
        key: Key, theta: Theta, state: InnerState, data: Data
    ) -> tuple[PairEstimate, InnerState]:
        k_perturbation, k_unroll = jax.random.split(key)
        perturbation = draw_perturbation(k_perturbation, theta, std)
        both, window = unroll_pair(problem, k_unroll, theta, perturbation, state, data, ALIKE)
        gradient = es_gradient(window.loss[0] - window.loss[1], window.mask[0], perturbation, std)
        kept = both._replace(
            params=jax.tree.map(lambda x: x[0], both.params),
            opt_state=jax.tree.map(lambda x: x[0], both.opt_state),
        )
        return pair_estimate(gradient, window), kept

    return antithetic_estimator(
        problem, problem.init, estimate_pair, num_pairs=num_pairs, std=std, mesh=mesh
    )
