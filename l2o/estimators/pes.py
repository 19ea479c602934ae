"""Persistent evolution strategies: unbiased meta-gradients from truncated windows.

Each antithetic pair keeps both inner states and the sum ξ of its perturbations ε since the run
began. A loss is credited to every perturbation that its run has felt,
    g = 1/(2 σ²) (A ξ + B ε),
where A is the mean loss difference over the window's steps up to and including the end of the run
and B that over the steps of the run that follows (Vicol, Metz, Sohl-Dickstein 2021, antithetic
form). Counting the last step of a run to B, as google/learned_optimization does, is biased.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from l2o.estimators.antithetic import (
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

Credit = Literal["exclusive", "inclusive"]


class PersistentPair(NamedTuple):
    """A pair between two windows.

    Attributes:
        inner: both members' training runs, as `unroll_pair` returns them.
        accumulated: ξ, the sum of the perturbations since the run began, a tree like theta.
    """

    inner: InnerState
    accumulated: Theta


def pes_gradient(
    delta: jax.Array,
    done: jax.Array,
    mask: jax.Array,
    accumulated: Theta,
    perturbation: Theta,
    std: float | jax.Array,
    credit: Credit = "exclusive",
) -> tuple[Theta, Theta]:
    """The meta-gradient of one pair, and ξ for the next window.

    Args:
        delta: shape (window,), loss of θ+ε minus loss of θ-ε at each step.
        done: shape (window,), True at the last step of a run.
        mask: shape (window,), False at steps that do not count.
        accumulated: ξ before this window.
        perturbation: ε of this window.
        std: σ.
        credit: "exclusive" is exact; "inclusive" reproduces google/learned_optimization, which
            gives the last step of a run to the run that follows.
    """
    ended = jnp.cumsum(done) > 0
    is_new_run = ended if credit == "inclusive" else jnp.roll(ended, 1).at[0].set(False)
    delta = jnp.where(mask, delta, 0.0)
    num_steps = jnp.maximum(jnp.sum(mask), 1)
    old_run = jnp.sum(jnp.where(is_new_run, 0.0, delta)) / num_steps
    new_run = jnp.sum(jnp.where(is_new_run, delta, 0.0)) / num_steps

    felt = jax.tree.map(jnp.add, accumulated, perturbation)
    gradient = jax.tree.map(
        lambda xi, e: (old_run * xi + new_run * e) / (2 * std**2), felt, perturbation
    )
    # A run that ended with the window has been replaced by one that felt nothing yet.
    kept_of_new_run = 0.0 if credit == "exclusive" else 1.0
    weight = jnp.where(done[-1], kept_of_new_run, 1.0)
    carried = jax.tree.map(lambda xi, e: jnp.where(ended[-1], weight * e, xi), felt, perturbation)
    return gradient, carried


def pes(
    problem: Problem,
    *,
    num_pairs: int,
    std: float,
    credit: Credit = "exclusive",
    mesh: Mesh | None = None,
) -> Estimator:
    """PES: unbiased for the mean loss over the horizon, whatever the window.

    Its variance grows with the number of windows in a run.

    Args:
        problem: what to unroll.
        num_pairs: antithetic pairs, each with its own runs at its own stage.
        std: σ, in units of theta. Smoothing bias grows as σ², noise of stochastic losses as 1/σ.
        credit: see `pes_gradient`.
        mesh: devices to spread the pairs over.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, or `std` <= 0.
    """

    def init_pair(key: Key, theta: Theta) -> PersistentPair:
        inner = problem.init(key, theta)
        twice = lambda x: jnp.stack([x, x])
        return PersistentPair(
            inner=inner._replace(
                params=jax.tree.map(twice, inner.params),
                opt_state=jax.tree.map(twice, inner.opt_state),
            ),
            accumulated=jax.tree.map(jnp.zeros_like, theta),
        )

    def estimate_pair(
        key: Key, theta: Theta, state: PersistentPair, data: Data
    ) -> tuple[PairEstimate, PersistentPair]:
        k_perturbation, k_unroll = jax.random.split(key)
        perturbation = draw_perturbation(k_perturbation, theta, std)
        inner, window = unroll_pair(problem, k_unroll, theta, perturbation, state.inner, data)
        gradient, accumulated = pes_gradient(
            window.loss[0] - window.loss[1],
            window.done[0],
            window.mask[0],
            state.accumulated,
            perturbation,
            std,
            credit,
        )
        return pair_estimate(gradient, window), PersistentPair(inner, accumulated)

    return antithetic_estimator(
        problem, init_pair, estimate_pair, num_pairs=num_pairs, std=std, mesh=mesh
    )
