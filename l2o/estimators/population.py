"""What estimators share: a population over devices, antithetic pairs, and shaping.

Inside, theta is one vector: perturbations, scores and gradients of its many small tensors would
each be a program's many small kernels. `population_estimator` ravels it and puts it back.
"""

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh

from l2o.distributed.mesh import check_divides, gather_shards, shard_index, shard_population
from l2o.estimators.estimator import Estimator
from l2o.learned_optimizer import Theta
from l2o.problem import InnerState, Problem, Window, map_theta
from l2o.task import Data, Key

MEMBERS = "members"
"""Name of the vmapped axis of the members that live on one device."""

Shaping = Literal["none", "sign", "centered_rank", "standardize"]


class MemberEstimate(NamedTuple):
    """What one member (a run, or an antithetic pair of runs) contributes to an estimate.

    Attributes:
        gradient: Meta-gradient, a vector.
        window: What its runs did; fields of shape (steps,), or (2, steps) for a pair.
    """

    gradient: jax.Array
    window: Window


class Population(NamedTuple):
    """State of an estimator.

    Attributes:
        members: States of the members, with a leading axis of size `num_members`.
        step: Number of estimates made, int32 scalar.
    """

    members: Any
    step: jax.Array


InitMember = Callable[[Problem, Key, jax.Array], Any]
"""`(problem, key, theta) -> state`; the problem is a function of the vector theta."""

EstimateMember = Callable[
    [Problem, Key, jax.Array, jax.Array, Any, Data], tuple[MemberEstimate, Any]
]
"""`(problem, key, theta, step, state, data) -> (estimate, state)`; likewise."""


def population_estimator(
    problem: Problem,
    init_member: InitMember,
    estimate_member: EstimateMember,
    *,
    num_members: int,
    steps_per_member: int,
    mesh: Mesh | None,
    reset: Callable[[Any], Any] = lambda state: state,
    argument: str = "num_members",
) -> Estimator:
    """Build an estimator from what one member does: the mean of the valid members' gradients.

    Member i draws from its own key, folded from i, whatever device it lives on. A member whose
    losses or gradient are not finite is left out of the mean. It is reset, so that its next window
    starts another run, and so is a member none of whose runs had a finite training loss in the
    whole window: that window still counts, at the cost of a diverged run, but the dead run does not
    idle to its horizon.

    Args:
        problem: Training runs to unroll.
        init_member: State that a member starts with.
        estimate_member: What a member does in one estimate.
        num_members: Size of the population.
        steps_per_member: Inner steps of one member in one estimate.
        mesh: Devices to spread the members over.
        reset: From the state of a member to one whose next window starts another run.
        argument: Name of the number of members in error messages.

    Raises:
        ValueError: If `num_members` < 1 or not a multiple of the mesh's devices.
    """
    if num_members < 1:
        raise ValueError(f"`{argument}` must be at least 1; got {num_members}. Try {argument}=16.")
    check_divides(num_members, mesh, argument)

    def init(key: Key, theta: Theta) -> Population:
        vector, unravel = ravel_pytree(theta)
        start = lambda i: init_member(
            map_theta(problem, unravel), jax.random.fold_in(key, i), vector
        )
        return Population(jax.vmap(start)(jnp.arange(num_members)), jnp.int32(0))

    def estimate(key: Key, theta: Theta, state: Population, data: Data):
        vector, unravel = ravel_pytree(theta)

        def member(index, state, key, theta, step, data):
            key = jax.random.fold_in(key, index)
            (gradient, window), state = estimate_member(
                map_theta(problem, unravel), key, theta, step, state, data
            )
            is_measured = is_finite(window)
            is_valid = is_measured & jnp.all(jnp.isfinite(gradient))
            goes_on = is_valid & jnp.any(window.finite)
            state = jax.tree.map(lambda old, new: jnp.where(goes_on, old, new), state, reset(state))
            return state, {
                "gradient": jnp.where(is_valid, gradient, 0.0),
                "valid": is_valid.astype(jnp.float32),
                "measured": is_measured.astype(jnp.float32),
                "meta_loss": jnp.where(is_measured, jnp.mean(window_mean(window)), 0.0),
                "finite": jnp.mean(window.finite.astype(jnp.float32)),
                "diverged": jnp.mean((window.diverged & window.mask).astype(jnp.float32)),
            }

        def members(indices, states, *shared):
            axes = (0, 0, *[None] * len(shared))
            states, parts = jax.vmap(member, axes, axis_name=MEMBERS)(indices, states, *shared)
            return states, jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)

        states, sums = shard_population(members, mesh)(
            jnp.arange(num_members), state.members, key, vector, state.step, data
        )
        mean = sums["gradient"] / jnp.maximum(sums["valid"], 1.0)
        metrics = {
            "meta_loss": sums["meta_loss"]
            / jnp.where(sums["measured"] > 0, sums["measured"], jnp.nan),
            "finite": sums["finite"] / num_members,
            "diverged": sums["diverged"] / num_members,
            "valid": sums["valid"] / num_members,
        }
        return unravel(mean), Population(states, state.step + 1), metrics

    return Estimator(init, estimate, steps=num_members * steps_per_member, data=problem.data)


def window_mean(window: Window) -> jax.Array:
    """Average the contributions that count; reduces the last axis."""
    num_steps = jnp.maximum(jnp.sum(window.mask, axis=-1), 1)
    return jnp.sum(jnp.where(window.mask, window.loss, 0.0), axis=-1) / num_steps


def is_finite(window: Window) -> jax.Array:
    """Tell whether every contribution that counts is finite, over all axes."""
    return jnp.all(jnp.isfinite(window.loss) | ~window.mask)


def gather_members(values: jax.Array, mesh: Mesh | None) -> tuple[jax.Array, jax.Array]:
    """Gather an array of each member, inside `population_estimator`.

    Args:
        values: Array of this member.
        mesh: Devices that the population is spread over.

    Returns:
        The arrays of all members, stacked along a first axis, and of each, whether it is another
        member's, shape (members,).
    """
    on_device = jax.lax.all_gather(values, MEMBERS)
    everyone = gather_shards(on_device, mesh)
    place = shard_index(mesh) * len(on_device) + jax.lax.axis_index(MEMBERS)
    return everyone, jnp.arange(len(everyone)) != place


def check_differentiable(problem: Problem) -> None:
    """Raise a `ValueError` that says what to type if backpropagation finds no gradient."""
    if not problem.is_differentiable:
        raise ValueError(
            "`estimator` must be an evolution strategy for a metric, for steps_to_target, for a "
            "task whose loss has no derivative, and for measure_on=train where the task modifies "
            "gradients, as backpropagation would not give the gradient; got one that "
            "backpropagates. Try estimator=nres, or measure=loss, measure_on=step."
        )


# Antithetic pairs, which share all random numbers but the sign of their perturbation.

PAIRED = InnerState(
    instance=None,
    params=0,
    opt_state=0,
    step=None,  # pyright: ignore[reportArgumentType]
    horizon=None,  # pyright: ignore[reportArgumentType]
    best=0,  # pyright: ignore[reportArgumentType]
    age=None,  # pyright: ignore[reportArgumentType]
)
"""vmap axes of a pair's inner state: the members differ in what they trained, and only in that."""


def check_problem(problem: Problem) -> None:
    """Raise a `ValueError` that says what to type if something else was given as a problem."""
    if not isinstance(problem, Problem):
        raise ValueError(
            f"`problem` must be a Problem; got {type(problem).__name__}. "
            "Try l2o.inner_problem(task, lopt, horizon=200, window=50)."
        )


def check_pairs(num_pairs: int, std: float | optax.Schedule, shaping: Shaping = "none") -> None:
    """Raise a `ValueError` that says what to type if there are no such pairs."""
    if not isinstance(num_pairs, Integral):
        raise ValueError(
            f"`num_pairs` must be a whole number; got {num_pairs!r}. Try num_pairs=16."
        )
    if num_pairs < 1:
        raise ValueError(f"`num_pairs` must be at least 1; got {num_pairs}. Try num_pairs=16.")
    if not callable(std) and not 0 < std < math.inf:
        raise ValueError(f"`std` must be positive and finite; got {std}. Try std=0.01.")
    if shaping not in get_args(Shaping):
        raise ValueError(
            f"`shaping` must be one of {', '.join(get_args(Shaping))}; got {shaping}. "
            "Try shaping=none."
        )


def std_at(std: float | optax.Schedule, step: jax.Array) -> jax.Array:
    """Evaluate σ, a number or a schedule of it over estimates."""
    return jnp.asarray(std(step) if callable(std) else std)


def both_signs(theta: jax.Array, perturbation: jax.Array) -> jax.Array:
    """Stack theta + ε and theta - ε, shape (2, meta-parameters)."""
    return jnp.stack([theta + perturbation, theta - perturbation])


def as_pair(state: InnerState) -> InnerState:
    """Let two members start from one state: a leading axis of size 2 on what they train.

    So in a pair's very first run alone a learned initial state of the optimizer is not perturbed.
    """
    twice = lambda tree: jax.tree.map(lambda x: jnp.stack([x, x]), tree)
    return state._replace(
        params=twice(state.params), opt_state=twice(state.opt_state), best=twice(state.best)
    )


def plus_member(pair: InnerState) -> InnerState:
    """Take the state of the member at theta + ε."""
    first = lambda tree: jax.tree.map(lambda x: x[0], tree)
    return pair._replace(
        params=first(pair.params), opt_state=first(pair.opt_state), best=first(pair.best)
    )


def unroll_pair(
    problem: Problem,
    key: Key,
    theta: jax.Array,
    perturbation: jax.Array,
    pair: InnerState,
    data: Data,
) -> tuple[InnerState, Window]:
    """Unroll a window under theta + ε (index 0) and theta - ε (index 1), on the same draws.

    Returns:
        The pair's state, laid out as `as_pair` does, and its window, with fields of shape
        (2, window).
    """
    thetas = both_signs(theta, perturbation)
    return jax.vmap(problem.unroll, (None, 0, PAIRED, None), (PAIRED, 0))(key, thetas, pair, data)


def loss_difference(
    window: Window, std: jax.Array | float, shaping: Shaping, mesh: Mesh | None
) -> jax.Array:
    """Compute ℓ⁺ - ℓ⁻ of each step of a pair, shaped, over the number of steps that count.

    Runs inside `population_estimator`, as ranks and spreads are those of all members.

    Args:
        window: Of a pair, with fields of shape (2, steps).
        std: Standard deviation of perturbations now.
        shaping: "none" keeps it; "sign" gives each pair one vote; "centered_rank" takes the
            difference of the ranks of its losses in the population, from -1 to 1; "standardize"
            multiplies it by σ over the standard deviation of the population's losses.
        mesh: Devices that the population is spread over.

    Returns:
        Shape (steps,).
    """
    delta = window.loss[0] - window.loss[1]
    if shaping != "none":
        # A pair that is left out ranks worst, which moves no difference between the others.
        losses = jnp.where(is_finite(window), window_mean(window), jnp.inf)
        if shaping == "sign":
            delta = jnp.broadcast_to(jnp.sign(losses[0] - losses[1]), delta.shape)
        else:
            population, _ = gather_members(losses, mesh)
            if shaping == "centered_rank":
                rank = centered_rank_difference(losses, population)
                delta = jnp.broadcast_to(rank, delta.shape)
            else:
                spread = jnp.std(population, where=jnp.isfinite(population))
                delta = delta * jnp.where(spread > 0, std / spread, 0.0)
    mask = window.mask[0]
    return jnp.where(mask, delta, 0.0) / jnp.maximum(jnp.sum(mask), 1)


def centered_rank_difference(losses: jax.Array, population: jax.Array) -> jax.Array:
    """Rank both losses of a pair and take the difference, from -1 to 1; equal ones share a rank.

    Args:
        losses: Shape (2,).
        population: Shape (all pairs, 2), among which to rank.
    """
    others = population.reshape(1, -1)
    below = jnp.sum(losses[:, None] > others, axis=-1)
    equal = jnp.sum(losses[:, None] == others, axis=-1)
    rank = below + 0.5 * (equal - 1.0)
    return (rank[0] - rank[1]) / (others.size - 1)
