"""One outer step: from a meta-gradient to the next theta."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.estimators.estimator import Estimator, EstimatorState
from l2o.learned_optimizer import Theta
from l2o.task import Data, Key


class MetaState(NamedTuple):
    """Everything that meta-training carries from step to step.

    Attributes:
        theta: meta-parameters.
        average: running average of theta, for evaluation and release.
        opt_state: state of the meta-optimizer.
        estimator_state: the population.
        step: outer steps taken, int32 scalar.
    """

    theta: Theta
    average: Theta
    opt_state: Any
    estimator_state: EstimatorState
    step: jax.Array


@dataclass(frozen=True, eq=False)
class Learner:
    """A way to meta-train, one outer step at a time.

    Attributes:
        init: `(key, theta) -> MetaState`.
        step: `(key, state, data) -> (state, metrics)`.
        theta: `(state) -> theta` to evaluate and release.
        steps: inner steps of one outer step, over all members.
        data: what `step` takes as `data`, an argument of the compiled program.
    """

    init: Callable[[Key, Theta], MetaState]
    step: Callable[[Key, MetaState, Data], tuple[MetaState, dict[str, jax.Array]]]
    theta: Callable[[MetaState], Theta]
    steps: int
    data: Data = ()


def gradient_learner(
    estimator: Estimator, optimizer: optax.GradientTransformation, *, averaging: float = 0.0
) -> Learner:
    """Descends the estimated meta-gradient with an optax optimizer.

    Args:
        estimator: where the meta-gradient comes from.
        optimizer: for instance global-norm clipping, then AdamW.
        averaging: decay in [0, 1) of an exponential average of theta, which `Learner.theta`
            returns; 0 returns theta itself. Early on the decay is at most (1 + t) / (10 + t), so
            that the start is forgotten.

    Raises:
        ValueError: if `averaging` is outside [0, 1).
    """
    check_averaging(averaging)

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
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.theta)
        theta = optax.apply_updates(state.theta, updates)
        average = running_average(averaging, state.step, state.average, theta)
        metrics["meta_gradient_norm"] = optax.tree.norm(gradient)
        return MetaState(theta, average, opt_state, estimator_state, state.step + 1), metrics

    return Learner(
        init=init,
        step=step,
        theta=lambda state: state.average,
        steps=estimator.steps,
        data=estimator.data,
    )


def check_averaging(averaging: float) -> None:
    """Raises a `ValueError` unless the decay is in [0, 1)."""
    if not 0 <= averaging < 1:
        raise ValueError(f"`averaging` must be in [0, 1); got {averaging}. Try averaging=0.98.")


def running_average(averaging: float, step: jax.Array, average: Theta, theta: Theta) -> Theta:
    """The exponential average of theta after outer step `step`; see `gradient_learner`."""
    decay = jnp.minimum(averaging, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda a, t: decay * a + (1 - decay) * t, average, theta)
