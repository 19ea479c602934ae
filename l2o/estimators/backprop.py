"""What estimators share that differentiate through the training run."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.population import is_finite, member_estimate, population_estimator
from l2o.learned_optimizer import Theta
from l2o.problem import Problem, Window
from l2o.task import Data, Key


def check_differentiable(problem: Problem) -> None:
    """Raises a `ValueError` that says what to type if the meta-loss has no gradient."""
    if not problem.is_differentiable:
        raise ValueError(
            "`estimator` must be an evolution strategy for a metric or for steps_to_target, which "
            "have no gradient; got one that backpropagates. Try estimator=nres, or measure=loss."
        )


def all_finite(tree: Theta) -> jax.Array:
    """Whether every element of a tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def backprop_estimator(
    problem: Problem,
    init_member: Callable[[Key, Theta], Any],
    gradient_of_member: Callable[[Key, Theta, Any, Data], tuple[Theta, Window, Any]],
    *,
    give_up: Callable[[Any], Any],
    num_members: int,
    num_steps: int,
    mesh: Mesh | None,
) -> Estimator:
    """An estimator from the gradient of one member's loss.

    A member with a gradient or loss that is not finite is left out.

    Args:
        problem: what to unroll.
        init_member: `(key, theta) -> state`.
        gradient_of_member: `(key, theta, state, data) -> (gradient, window, state)`.
        give_up: from the state of one member to one whose next estimate starts another run.
        num_members: training runs side by side.
        num_steps: inner steps of one member in one estimate.
        mesh: devices to spread the members over.

    Raises:
        ValueError: if `num_members` < 1 or not a multiple of the mesh's devices, or the meta-loss
            has no gradient.
    """
    check_differentiable(problem)
    if num_members < 1:
        raise ValueError(f"`num_members` must be at least 1; got {num_members}. Try 16.")

    def members(keys: Key, theta: Theta, states: Any, step: jax.Array, data: Data):
        del step

        def member(key: Key, state: Any):
            gradient, window, state = gradient_of_member(key, theta, state, data)
            valid = is_finite(window) & all_finite(gradient)
            return member_estimate(gradient, window, valid), state

        return jax.vmap(member)(keys, states)

    return population_estimator(
        problem,
        init_member,
        members,
        give_up=give_up,
        num_members=num_members,
        steps=num_members * num_steps,
        mesh=mesh,
    )
