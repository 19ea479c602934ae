"""Truncated backpropagation: the gradient of a window's loss, with its first state held fixed.

What theta does to later windows is not seen: biased like truncated ES, and exact within the window.
"""

import jax
from jax.sharding import Mesh

from l2o.estimators.backprop import backprop_estimator
from l2o.estimators.estimator import Estimator
from l2o.estimators.population import window_mean
from l2o.learned_optimizer import Theta
from l2o.problem import InnerState, Problem, given_up
from l2o.task import Data, Key


def truncated_grad(problem: Problem, *, num_members: int, mesh: Mesh | None = None) -> Estimator:
    """Truncated backpropagation through time: cheap, biased when the horizon is above the window.

    Args:
        problem: what to unroll.
        num_members: runs side by side, each at a stage of its own.
        mesh: devices to spread them over.

    Raises:
        ValueError: if `num_members` < 1 or not a multiple of the mesh's devices, or the meta-loss
            has no gradient.
    """

    def gradient_of_window(key: Key, theta: Theta, state: InnerState, data: Data):
        def cost(theta: Theta):
            after, window = problem.unroll(key, theta, state, data)
            return window_mean(window), (window, after)

        gradient, (window, after) = jax.grad(cost, has_aux=True)(theta)
        return gradient, window, after

    return backprop_estimator(
        problem,
        problem.init,
        gradient_of_window,
        give_up=given_up,
        num_members=num_members,
        num_steps=problem.window,
        mesh=mesh,
    )
