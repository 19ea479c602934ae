"""One outer step: from a meta-gradient to the next theta."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from l2o.estimators.estimator import Estimator, EstimatorState
from l2o.learned_optimizer import Theta
from l2o.leaves import require_transformation
from l2o.task import Data, Key


class MetaState(NamedTuple):
    """State of meta-training between two outer steps.

    Attributes:
        theta: Meta-parameters.
        average: Exponential moving average of theta, for evaluation and release.
        opt_state: State of the meta-optimizer, or of the strategy.
        estimator_state: State of the population.
        step: Number of outer steps taken, int32 scalar.
    """

    theta: Theta
    average: Theta
    opt_state: Any
    estimator_state: EstimatorState
    step: jax.Array


@dataclass(frozen=True, eq=False)
class Learner:
    """Way to meta-train, one outer step at a time.

    Attributes:
        init: `(key, theta) -> MetaState`.
        step: `(key, state, data) -> (state, metrics)`.
        theta: `(state) -> theta` to evaluate and release.
        steps: Number of inner steps of one outer step, over all members.
        data: Arrays to pass to `step` as `data`, an argument of the compiled program.
    """

    init: Callable[[Key, Theta], MetaState]
    step: Callable[[Key, MetaState, Data], tuple[MetaState, dict[str, jax.Array]]]
    theta: Callable[[MetaState], Theta]
    steps: int
    data: Data = field(default=(), repr=False)


def gradient_learner(
    estimator: Estimator, optimizer: optax.GradientTransformation, *, ema_decay: float = 0.0
) -> Learner:
    """Descend the estimated meta-gradient with an optax optimizer.

    A meta-gradient that is not finite is left out: theta and the optimizer's state stay.

    >>> import l2o, optax
    >>> from l2o.tasks.quadratic import rosenbrock
    >>> design = l2o.learnable_adam()
    >>> problem = l2o.inner_problem(rosenbrock(), design, horizon=20, window=5)
    >>> estimator = l2o.nres(problem, num_pairs=8, std=0.01)
    >>> learner = l2o.gradient_learner(estimator, optax.adam(0.01), ema_decay=0.98)
    >>> learner.steps
    80

    Args:
        estimator: Estimator of the meta-gradient.
        optimizer: Meta-optimizer, for instance global-norm clipping, then AdamW.
        ema_decay: Decay in [0, 1) of an exponential moving average of theta, which
            `Learner.theta` returns; 0 returns theta itself. Early on the decay is at most
            (1 + t) / (10 + t), so that the start is forgotten.

    Raises:
        ValueError: If `ema_decay` is outside [0, 1), or `optimizer` no optax transformation.
    """
    check_ema_decay(ema_decay)
    optimizer = require_transformation(optimizer, "optimizer")

    def init(key: Key, theta: Theta) -> MetaState:
        return MetaState(
            theta=theta,
            average=theta,
            opt_state=optimizer.init(theta),
            estimator_state=estimator.init(key, theta),
            step=jnp.int32(0),
        )

    def step(key: Key, state: MetaState, data: Data) -> tuple[MetaState, dict[str, jax.Array]]:
        gradient, estimator_state, metrics = estimator.estimate(
            key, state.theta, state.estimator_state, data
        )
        theta, opt_state = descend(optimizer, gradient, state.opt_state, state.theta)
        average = update_ema(ema_decay, state.step, state.average, theta)
        metrics["meta_gradient_norm"] = optax.tree.norm(gradient)
        return MetaState(theta, average, opt_state, estimator_state, state.step + 1), metrics

    return Learner(
        init=init,
        step=step,
        theta=lambda state: state.average,
        steps=estimator.steps,
        data=estimator.data,
    )


def descend(
    optimizer: optax.GradientTransformation, gradient: Theta, opt_state: Any, theta: Theta
) -> tuple[Theta, Any]:
    """Take one step of a meta-optimizer, unless the gradient is not finite.

    NaN in theta or in the meta-optimizer's moments would stay for ever.

    Args:
        optimizer: Meta-optimizer.
        gradient: Meta-gradient, a tree like theta.
        opt_state: State of the meta-optimizer.
        theta: Meta-parameters.

    Returns:
        Theta and the state after the step, or as they were.
    """
    updates, stepped = optimizer.update(gradient, opt_state, theta)
    after = optax.apply_updates(theta, updates), stepped
    is_usable = jnp.all(jnp.isfinite(ravel_pytree(gradient)[0]))
    return jax.tree.map(lambda new, old: jnp.where(is_usable, new, old), after, (theta, opt_state))


def check_ema_decay(ema_decay: float) -> None:
    """Raise a `ValueError` unless the decay is in [0, 1)."""
    if not 0 <= ema_decay < 1:
        raise ValueError(f"`ema_decay` must be in [0, 1); got {ema_decay}. Try ema_decay=0.98.")


def update_ema(ema_decay: float, step: jax.Array, average: Theta, theta: Theta) -> Theta:
    """Update the moving average of theta after outer step `step`; see `gradient_learner`."""
    decay = jnp.minimum(ema_decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, t: decay * a + (1 - decay) * t, average, theta)
