"""The interface of meta-gradient estimators, and the mean of several."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from l2o.learned_optimizer import Theta
from l2o.task import Data, Key

EstimatorState = Any


@dataclass(frozen=True, eq=False)
class Estimator:
    """An estimator of the gradient of a meta-loss with respect to theta.

    Attributes:
        init: `(key, theta) -> EstimatorState`.
        estimate: `(key, theta, state, data) -> (meta-gradient, state, metrics)`. The metrics hold
            at least `meta_loss` (mean over steps and members) and `finite` (fraction of inner
            steps with a finite training loss).
        steps: inner steps of one estimate, over all members.
        data: what `estimate` takes as `data`, an argument of the compiled program.
    """

    init: Callable[[Key, Theta], EstimatorState]
    estimate: Callable[
        [Key, Theta, EstimatorState, Data], tuple[Theta, EstimatorState, dict[str, jax.Array]]
    ]
    steps: int
    data: Data = ()


def mean_of(estimators: Mapping[str, Estimator]) -> Estimator:
    """The mean of several estimators, for instance over task variants of different shapes.

    Random streams derive from the names: adding one leaves the others' draws as they were.
    Metrics are averaged, and kept apart under `name/metric`.
    """
    parts: Sequence[tuple[str, Estimator]] = tuple(estimators.items())
    if not parts:
        raise ValueError("`estimators` must not be empty; got {}. Pass at least one.")

    def key_of(key: Key, name: str) -> Key:
        return jax.random.fold_in(key, zlib.crc32(name.encode()))

    def init(key: Key, theta: Theta) -> EstimatorState:
        return {name: part.init(key_of(key, name), theta) for name, part in parts}

    def estimate(key: Key, theta: Theta, state: EstimatorState, data: Data):
        gradients, states, metrics = {}, {}, {}
        for name, part in parts:
            gradients[name], states[name], metrics[name] = part.estimate(
                key_of(key, name), theta, state[name], data[name]
            )
        mean = jax.tree.map(lambda *g: sum(g) / len(parts), *gradients.values())
        means = jax.tree.map(lambda *m: jnp.mean(jnp.stack(m)), *metrics.values())
        apart = {f"{name}/{k}": v for name, _ in parts for k, v in metrics[name].items()}
        return mean, states, means | apart

    return Estimator(
        init=init,
        estimate=estimate,
        steps=sum(part.steps for _, part in parts),
        data={name: part.data for name, part in parts},
    )
