"""What estimators share whose members carry their runs, and what those have felt, between windows.

A loss is credited to every perturbation that its run has felt. With perturbations ε_k drawn from
N(0, σ_k² I), each used for some windows in turn, the pair's meta-gradient is
    ½ Σ_t (ℓ_t⁺ - ℓ_t⁻) Σ_k ε_k / σ_k²,
over the steps t of the window and the perturbations k since the run began (Vicol, Metz,
Sohl-Dickstein 2021, antithetic form; Li, Harrison, Sohl-Dickstein, Smith, Metz 2023). Drawing a
new one every window gives PES, one a run NRES.
"""

from typing import Literal, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from l2o.estimators.antithetic import (
    EvolutionOptions,
    PairOutcome,
    antithetic_estimator,
    as_pair,
    draw_perturbation,
    score_of,
    unroll_pair,
)
from l2o.estimators.estimator import Estimator
from l2o.problem import InnerState, Problem, given_up
from l2o.task import Data, Key

Credit = Literal["exclusive", "inclusive"]
Redraw = Literal["every_window", "every_run"]


class PersistentPair(NamedTuple):
    """A pair between two windows.

    Attributes:
        inner: both members' training runs, as `unroll_pair` returns them.
        felt: Σ ε/σ² over the perturbations since the run began, a vector like theta.
        perturbation: the last ε, a vector like theta.
        score: ε/σ² of the last, a vector like theta.
        is_due: whether the next window draws a new one.
    """

    inner: InnerState
    felt: jax.Array
    perturbation: jax.Array
    score: jax.Array
    is_due: jax.Array


def credit_window(
    done: jax.Array, felt: jax.Array, score: jax.Array, credit: Credit = "exclusive"
) -> tuple[jax.Array, jax.Array]:
    """Which steps of a window belong to the run that follows, and what that has felt afterwards.

    Args:
        done: shape (window,), True at the last step of a run.
        felt: Σ ε/σ² of the run that the window begins in, this window's included.
        score: ε/σ² of this window.
        credit: "exclusive" is exact; "inclusive" reproduces google/learned_optimization, which
            gives the last step of a run to the run that follows.

    Returns:
        A mask of shape (window,), and a vector like theta.
    """
    ended = jnp.cumsum(done) > 0
    is_next = ended if credit == "inclusive" else jnp.roll(ended, 1).at[0].set(False)
    # A run that ended with the window is followed by one that felt nothing yet.
    weight = jnp.where(done[-1], 0.0 if credit == "exclusive" else 1.0, 1.0)
    return is_next, jnp.where(ended[-1], weight * score, felt)


def persistent_estimator(
    problem: Problem,
    *,
    redraw: Redraw,
    start: Literal["staggered", "together"] = "staggered",
    credit: Credit = "exclusive",
    **options: Unpack[EvolutionOptions],
) -> Estimator:
    """An estimator whose pairs carry their runs from window to window.

    Args:
        problem: what to unroll.
        redraw: when a pair draws a new perturbation.
        start: whether the first run of a pair is at a random stage or at its first step. There
            alone a learned initial state of the optimizer is not perturbed.
        credit: see `credit_window`.
        **options: see `EvolutionOptions`.
    """

    def init_pair(problem: Problem, key: Key, theta: jax.Array) -> PersistentPair:
        run = problem.init if start == "staggered" else problem.start
        zeros = jnp.zeros_like(theta)
        return PersistentPair(
            inner=as_pair(run(key, theta)),
            felt=zeros,
            perturbation=zeros,
            score=zeros,
            is_due=jnp.bool_(True),
        )

    def estimate_pair(
        problem: Problem,
        key: Key,
        theta: jax.Array,
        state: PersistentPair,
        std: jax.Array | float,
        data: Data,
    ) -> tuple[PairOutcome, PersistentPair]:
        k_perturbation, k_unroll = jax.random.split(key)
        drawn = draw_perturbation(k_perturbation, theta, std)
        perturbation = jnp.where(state.is_due, drawn, state.perturbation)
        score = jnp.where(state.is_due, score_of(drawn, std), state.score)
        felt = jnp.where(state.is_due, state.felt + score, state.felt)
        inner, window = unroll_pair(problem, k_unroll, theta, perturbation, state.inner, data)
        done = window.done[0]
        is_next, carried = credit_window(done, felt, score, credit)
        is_due = jnp.bool_(True) if redraw == "every_window" else jnp.any(done)
        return (
            PairOutcome(window, felt, score, is_next),
            PersistentPair(inner, carried, perturbation, score, is_due),
        )

    def give_up(state: PersistentPair) -> PersistentPair:
        return state._replace(
            inner=given_up(state.inner), felt=jnp.zeros_like(state.felt), is_due=jnp.bool_(True)
        )

    return antithetic_estimator(
        problem,
        init_pair,
        estimate_pair,
        give_up=give_up,
        num_steps=problem.window,
        **options,
    )
