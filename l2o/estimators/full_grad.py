"""Backpropagation through whole runs: exact, where the loss is smooth enough to have a use for it.

The gradient of the cost of a run through all of its updates. States between windows are kept and
each window is computed again on the way back (`jax.checkpoint`), so memory grows as
horizon/window + window. On long runs of real networks the gradient explodes.
"""

import jax
from jax.sharding import Mesh

from l2o.estimators.backprop import backprop_estimator
from l2o.estimators.estimator import Estimator
from l2o.estimators.population import window_mean
from l2o.learned_optimizer import Theta
from l2o.problem import Problem, unroll_run
from l2o.task import Data, Key


def full_grad(problem: Problem, *, num_members: int, mesh: Mesh | None = None) -> Estimator:
    """Full backpropagation: the mean gradient over runs, each from its start to its horizon.

    Args:
        problem: what to unroll.
        num_members: runs of each estimate.
        mesh: devices to spread them over.

    Raises:
        ValueError: if `num_members` < 1 or not a multiple of the mesh's devices, or the meta-loss
            has no gradient.
    """

    def gradient_of_run(key: Key, theta: Theta, state: tuple[()], data: Data):
        def cost(theta: Theta):
            window = unroll_run(problem, key, theta, data)
            return window_mean(window), window

        gradient, window = jax.grad(cost, has_aux=True)(theta)
        return gradient, window, state

    return backprop_estimator(
        problem,
        lambda key, theta: (),
        gradient_of_run,
        give_up=lambda state: state,
        num_members=num_members,
        num_steps=problem.horizon,
        mesh=mesh,
    )
