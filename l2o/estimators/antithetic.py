"""What evolution strategies share: antithetic pairs with common random numbers, and shaping.

To them theta is one vector: perturbations, scores and gradients of its many small tensors would
each be a program's many small kernels.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Required, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from l2o.distributed.mesh import whole_population
from l2o.estimators.estimator import Estimator
from l2o.estimators.population import (
    MemberEstimate,
    is_finite,
    member_estimate,
    population_estimator,
    window_mean,
)
from l2o.learned_optimizer import Theta
from l2o.problem import InnerState, Problem, Window, reparametrized
from l2o.task import Data, Key

Shaping = Literal["none", "sign", "centered_rank", "standardize"]

PAIRED = InnerState(
    instance=None,
    params=0,
    opt_state=0,
    step=None,  # pyright: ignore[reportArgumentType]
    horizon=None,  # pyright: ignore[reportArgumentType]
    best=0,  # pyright: ignore[reportArgumentType]
)
"""vmap axes of a pair's inner state: the members differ in what they trained, and only in that."""

ALIKE = PAIRED._replace(params=None, opt_state=None, best=None)  # pyright: ignore[reportArgumentType]
"""vmap axes of an inner state that both members start from."""


class EvolutionOptions(TypedDict, total=False):
    """What every evolution strategy takes.

    Attributes:
        num_pairs: antithetic pairs.
        std: σ, in units of theta, or a schedule of it over estimates. Smoothing bias grows as σ²,
            the noise of stochastic losses as 1/σ.
        shaping: what a pair's loss difference counts as: "none" as it is; "sign" its sign, so that
            every pair has one vote; "centered_rank" the difference of the ranks of its two losses
            among those of the population, scaled to [-1, 1]; "standardize" as it is, with the
            estimate multiplied by σ over the standard deviation of the population's losses.
        mesh: devices to spread the pairs over.
    """

    num_pairs: Required[int]
    std: Required[float | optax.Schedule]
    shaping: Shaping
    mesh: Mesh | None


class PairOutcome(NamedTuple):
    """What a pair saw in a window, before its loss differences are shaped.

    Attributes:
        window: of both members, fields of shape (2, steps).
        score: sum of ε/σ² over the perturbations ε that the run has felt, a vector like theta.
        score_of_next: the same for the run that follows within the window.
        is_next: shape (steps,), whether a step belongs to the run that follows.
    """

    window: Window
    score: jax.Array
    score_of_next: jax.Array
    is_next: jax.Array


InitPair = Callable[[Problem, Key, jax.Array], Any]
"""`(problem, key, theta) -> state` of one pair; the problem is a function of the vector theta."""

EstimatePair = Callable[
    [Problem, Key, jax.Array, Any, jax.Array | float, Data], tuple[PairOutcome, Any]
]
"""`(problem, key, theta, state, std, data) -> (outcome, state)` of one pair; likewise."""


def as_vector(problem: Problem, theta: Theta) -> tuple[Problem, jax.Array]:
    """Theta as one vector, and the problem as a function of such vectors."""
    flat, unravel = ravel_pytree(theta)
    return reparametrized(problem, unravel), flat


def like(theta: Theta, vector: jax.Array) -> Theta:
    """A tree like theta from a vector."""
    return ravel_pytree(theta)[1](vector)


def draw_perturbation(key: Key, theta: jax.Array, std: float | jax.Array) -> jax.Array:
    """Normal noise of standard deviation `std`, a vector like theta."""
    return std * jax.random.normal(key, theta.shape)


def score_of(perturbation: jax.Array, std: float | jax.Array) -> jax.Array:
    """ε/σ², the gradient of the log density of theta + ε with respect to theta."""
    return perturbation / std**2


def both_signs(theta: jax.Array, perturbation: jax.Array) -> jax.Array:
    """theta + ε and theta - ε, shape (2, meta-parameters)."""
    return jnp.stack([theta + perturbation, theta - perturbation])


def as_pair(state: InnerState) -> InnerState:
    """The state of two members that have trained the same so far, laid out as `PAIRED` says."""
    twice = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
    return state._replace(
        params=twice(state.params), opt_state=twice(state.opt_state), best=twice(state.best)
    )


def plus_member(state: InnerState) -> InnerState:
    """The state of the member at theta + ε."""
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    return state._replace(
        params=first(state.params), opt_state=first(state.opt_state), best=first(state.best)
    )


def unroll_pair(
    problem: Problem,
    key: Key,
    theta: jax.Array,
    perturbation: jax.Array,
    state: InnerState,
    data: Data,
    axes: InnerState = PAIRED,
) -> tuple[InnerState, Window]:
    """A window under theta + ε (index 0) and theta - ε (index 1), on the same draws.

    Returns:
        The pair's state, with a leading axis of size 2 on what the members trained, and its
        window, with fields of shape (2, window).
    """
    thetas = both_signs(theta, perturbation)
    return jax.vmap(problem.unroll, (None, 0, axes, None), (PAIRED, 0))(key, thetas, state, data)


def pair_outcome(window: Window, perturbation: jax.Array, std: float | jax.Array) -> PairOutcome:
    """The outcome of a pair whose window belongs to a single run, with one perturbation."""
    score = score_of(perturbation, std)
    return PairOutcome(window, score, score, jnp.zeros(window.loss.shape[-1], bool))


def pair_gradient(outcome: PairOutcome, delta: jax.Array) -> jax.Array:
    """½ (A s + B s'): the pair's meta-gradient, a vector, from its loss differences and scores.

    Args:
        outcome: what the pair saw.
        delta: shape (steps,), loss of θ+ε minus loss of θ-ε at each step. A and B are its sums
            over the steps of the run and of the one that follows, over the number of all.
    """
    mask = outcome.window.mask[0]
    delta = jnp.where(mask, delta, 0.0) / jnp.maximum(jnp.sum(mask), 1)
    of_run = jnp.sum(jnp.where(outcome.is_next, 0.0, delta))
    of_next = jnp.sum(jnp.where(outcome.is_next, delta, 0.0))
    return 0.5 * (of_run * outcome.score + of_next * outcome.score_of_next)


def centered_rank_delta(losses: jax.Array, population: jax.Array) -> jax.Array:
    """Difference of the ranks of each pair's losses, from -1 to 1; equal losses share their rank.

    Args:
        losses: shape (pairs, 2).
        population: shape (all pairs, 2), among which to rank.
    """
    others = population.reshape(1, 1, -1)
    below = jnp.sum(losses[..., None] > others, axis=-1)
    equal = jnp.sum(losses[..., None] == others, axis=-1)
    rank = below + 0.5 * (equal - 1.0)
    return (rank[:, 0] - rank[:, 1]) / (others.size - 1)


def shaped_deltas(
    window: Window, valid: jax.Array, std: float | jax.Array, shaping: Shaping, mesh: Mesh | None
) -> jax.Array:
    """Loss differences, shape (pairs, steps), from windows of shape (pairs, 2, steps)."""
    delta = window.loss[:, 0] - window.loss[:, 1]
    if shaping == "none":
        return delta
    # A pair that is left out ranks worst, which moves no difference between the others.
    losses = jnp.where(valid[:, None], window_mean(window), jnp.inf)
    if shaping == "sign":
        votes = jnp.sign(losses[:, 0] - losses[:, 1])
        return jnp.broadcast_to(votes[:, None], delta.shape)
    population = whole_population(losses, mesh)
    if shaping == "centered_rank":
        ranks = centered_rank_delta(losses, population)
        return jnp.broadcast_to(ranks[:, None], delta.shape)
    spread = jnp.std(population, where=jnp.isfinite(population))
    return delta * jnp.where(spread > 0, std / spread, 0.0)


def antithetic_estimator(
    problem: Problem,
    init_pair: InitPair,
    estimate_pair: EstimatePair,
    *,
    give_up: Callable[[Any], Any],
    num_steps: int,
    **options: Unpack[EvolutionOptions],
) -> Estimator:
    """An estimator from what one pair does.

    Args:
        problem: what to unroll.
        init_pair: what a pair starts with.
        estimate_pair: what a pair does in one estimate.
        give_up: from the state of one pair to one whose next estimate starts another run.
        num_steps: inner steps of one member in one estimate.
        **options: see `EvolutionOptions`.

    Raises:
        ValueError: if `num_pairs` < 1 or not a multiple of the mesh's devices, `std` <= 0, or
            `shaping` is unknown or needs more pairs.
    """
    num_pairs, mesh = options["num_pairs"], options.get("mesh")
    shaping = options.get("shaping", "none")
    check_options(num_pairs, options["std"], shaping)
    schedule = as_schedule(options["std"])

    def members(keys: Key, theta: Theta, states: Any, step: jax.Array, data: Data):
        std = schedule(step)
        of_vector, flat = as_vector(problem, theta)
        pair = lambda key, state: estimate_pair(of_vector, key, flat, state, std, data)
        outcomes, states = jax.vmap(pair)(keys, states)
        valid = jax.vmap(is_finite)(outcomes.window)
        deltas = shaped_deltas(outcomes.window, valid, std, shaping, mesh)
        gradients = jax.vmap(pair_gradient)(outcomes, deltas)
        estimates: MemberEstimate = jax.vmap(member_estimate)(gradients, outcomes.window, valid)
        return estimates, states

    def init(key: Key, theta: Theta) -> Any:
        of_vector, flat = as_vector(problem, theta)
        return init_pair(of_vector, key, flat)

    return population_estimator(
        problem,
        init,
        members,
        give_up=give_up,
        num_members=num_pairs,
        steps=2 * num_pairs * num_steps,
        mesh=mesh,
        name="num_pairs",
        combine=lambda mean, num_valid, theta: like(theta, mean),
    )


def as_schedule(std: float | optax.Schedule) -> Callable[[jax.Array], jax.Array]:
    """A schedule of σ over estimates."""
    return lambda step: jnp.asarray(std(step) if callable(std) else std)


def check_options(num_pairs: int, std: float | optax.Schedule, shaping: Shaping) -> None:
    """Raises a `ValueError` that says what to type if a population cannot be made of these."""
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1; got {num_pairs}. Try num_pairs=16.")
    if not callable(std) and not 0 < std < math.inf:
        raise ValueError(f"`std` must be positive and finite; got {std}. Try std=0.01.")
    known = ("none", "sign", "centered_rank", "standardize")
    if shaping not in known:
        raise ValueError(f"`shaping` must be one of {', '.join(known)}; got {shaping}.")
