"""Truncated backpropagation: the gradient of a window's loss, with its first state held fixed.

What theta does to later windows is not seen: biased like truncated ES, and exact within the window.
"""

import jax
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.estimators.population import (
    MemberEstimate,
    check_differentiable,
    population_estimator,
    window_mean,
)
from l2o.problem import Problem, reset_run


def truncated_grad(problem: Problem, *, num_members: int, mesh: Mesh | None = None) -> Estimator:
    """Backpropagate through a window: cheap, biased when the horizon is longer than the window.

    A member with a gradient or loss that is not finite is left out.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.truncated_grad(problem, num_members=8).steps
    40

    Args:
        problem: Training runs to unroll.
        num_members: Number of runs side by side, each at a stage of its own.
        mesh: Devices to spread the runs over.

    Raises:
        ValueError: If `num_members` < 1 or not a multiple of the mesh's devices, or the meta-loss
            has no gradient.
    """
    check_differentiable(problem)

    def estimate_run(problem, key, theta, step, run, data):
        def cost(theta: jax.Array):
            after, window = problem.unroll(key, theta, run, data)
            return window_mean(window), (window, after)

        gradient, (window, after) = jax.grad(cost, has_aux=True)(theta)
        return MemberEstimate(gradient, window), after

    return population_estimator(
        problem,
        lambda problem, key, theta: problem.init(key, theta),
        estimate_run,
        num_members=num_members,
        steps_per_member=problem.window,
        mesh=mesh,
        reset=reset_run,
    )
