"""What all estimators share: a population of members, and the mean of those that are valid."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from l2o.distributed.mesh import over_devices
from l2o.estimators.estimator import Estimator
from l2o.learned_optimizer import Theta
from l2o.problem import Problem, Window
from l2o.task import Data, Key


class MemberEstimate(NamedTuple):
    """What one member (one run, or one antithetic pair of runs) contributes to an estimate.

    Attributes:
        gradient: its meta-gradient, in any form that `combine` takes; zero where `valid` is 0.
        valid: 1.0, or 0.0 for a member that is left out.
        measured: 1.0, or 0.0 where the meta-loss is not finite.
        meta_loss: mean over its steps and runs; zero where `measured` is 0.
        finite: fraction of inner steps with a finite training loss.
    """

    gradient: Any
    valid: jax.Array
    measured: jax.Array
    meta_loss: jax.Array
    finite: jax.Array


class Population(NamedTuple):
    """The state of an estimator.

    Attributes:
        members: their states, with a leading axis of size `num_members`.
        step: estimates made, int32 scalar.
    """

    members: Any
    step: jax.Array


EstimateMembers = Callable[[Key, Theta, Any, jax.Array, Data], tuple[MemberEstimate, Any]]
"""`(keys, theta, states, step, data) -> (estimates, states)`, with a member axis on `keys`, on both
states and on the estimates, for the members that live on one device."""


def window_mean(window: Window) -> jax.Array:
    """The mean contribution over the steps that count; reduces the last axis."""
    num_steps = jnp.maximum(jnp.sum(window.mask, axis=-1), 1)
    return jnp.sum(jnp.where(window.mask, window.loss, 0.0), axis=-1) / num_steps


def is_finite(window: Window) -> jax.Array:
    """Whether every contribution that counts is finite, over all axes."""
    return jnp.all(jnp.isfinite(window.loss) | ~window.mask)


def member_estimate(gradient: Theta, window: Window, is_valid: jax.Array) -> MemberEstimate:
    """A member's contribution; no gradient unless it is valid."""
    measured = is_finite(window)
    return MemberEstimate(
        gradient=jax.tree.map(lambda g: jnp.where(is_valid, g, 0.0), gradient),
        valid=is_valid.astype(jnp.float32),
        measured=measured.astype(jnp.float32),
        meta_loss=jnp.where(measured, jnp.mean(window_mean(window)), 0.0),
        finite=jnp.mean(window.finite.astype(jnp.float32)),
    )


def population_estimator(
    problem: Problem,
    init_member: Callable[[Key, Theta], Any],
    estimate_members: EstimateMembers,
    *,
    give_up: Callable[[Any], Any],
    num_members: int,
    steps: int,
    mesh: Mesh | None,
    name: str = "num_members",
    combine: Callable[[Any, jax.Array, Theta], Theta] = lambda mean, num_valid, theta: mean,
) -> Estimator:
    """An estimator from what its members do: the mean of the valid members' gradients.

    Member i draws from its own key, folded from i, whatever device it lives on. A member that is
    not valid is left out of the mean, and its run given up.

    Args:
        problem: where the data comes from.
        init_member: `(key, theta) -> state` of one member.
        estimate_members: what members do in one estimate.
        give_up: from the state of one member to one whose next estimate starts another run.
        num_members: size of the population.
        steps: inner steps of one estimate, over all members.
        mesh: devices to spread the members over.
        name: what the caller calls the number of members.
        combine: from the mean over the valid members of what they return as gradients, their
            number and theta to the meta-gradient, a tree like theta.

    Raises:
        ValueError: if `num_members` is not a multiple of the mesh's devices.
    """

    def member_keys(key: Key, indices: jax.Array) -> Key:
        return jax.vmap(jax.random.fold_in, (None, 0))(key, indices)

    def init(key: Key, theta: Theta) -> Population:
        keys = member_keys(key, jnp.arange(num_members))
        return Population(jax.vmap(init_member, (0, None))(keys, theta), jnp.int32(0))

    def members(indices, states, key, theta, step, data):
        keys = member_keys(key, indices)
        estimates, states = estimate_members(keys, theta, states, step, data)

        def unless_valid(valid: jax.Array, state: Any) -> Any:
            other = give_up(state)
            return jax.tree.map(lambda old, new: jnp.where(valid > 0, old, new), state, other)

        states = jax.vmap(unless_valid)(estimates.valid, states)
        return states, jax.tree.map(lambda x: jnp.sum(x, axis=0), estimates)

    run = over_devices(members, num_members, mesh, name=name)

    def estimate(key: Key, theta: Theta, state: Population, data: Data):
        states, sums = run(jnp.arange(num_members), state.members, key, theta, state.step, data)
        num_valid = jnp.maximum(sums.valid, 1.0)
        mean = jax.tree.map(lambda g: g / num_valid, sums.gradient)
        metrics = {
            "meta_loss": sums.meta_loss / jnp.where(sums.measured > 0, sums.measured, jnp.nan),
            "finite": sums.finite / num_members,
            "valid": sums.valid / num_members,
        }
        return combine(mean, num_valid, theta), Population(states, state.step + 1), metrics

    return Estimator(init=init, estimate=estimate, steps=steps, data=problem.data)
