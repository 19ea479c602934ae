"""Backpropagation through whole runs: exact, where the loss is smooth enough to have a use for it.

The gradient of the cost of a run through all of its updates. States between windows are kept and
each window is computed again on the way back (`jax.checkpoint`), so memory grows as
horizon/window + window. On long runs of real networks the gradient explodes.
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
from l2o.problem import Problem, check_no_curriculum, unroll_run


def full_grad(problem: Problem, *, num_members: int, mesh: Mesh | None = None) -> Estimator:
    """Backpropagate through whole runs: the mean gradient, each from its start to its horizon.

    A member with a gradient or loss that is not finite is left out.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> optimizer = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), optimizer, horizon=20, window=5)
    >>> l2o.full_grad(problem, num_members=8).steps
    160

    Args:
        problem: Training runs to unroll.
        num_members: Number of runs of each estimate.
        mesh: Devices to spread the runs over.

    Raises:
        ValueError: If `num_members` < 1 or not a multiple of the mesh's devices, or the meta-loss
            has no gradient.
    """
    check_differentiable(problem)
    check_no_curriculum(problem, "full_grad")

    def estimate_run(problem, key, theta, step, state, data):
        def cost(theta: jax.Array):
            window = unroll_run(problem, key, theta, data)
            return window_mean(window), window

        gradient, window = jax.grad(cost, has_aux=True)(theta)
        return MemberEstimate(gradient, window), state

    return population_estimator(
        problem,
        lambda problem, key, theta: (),
        estimate_run,
        num_members=num_members,
        steps_per_member=problem.horizon,
        mesh=mesh,
    )
