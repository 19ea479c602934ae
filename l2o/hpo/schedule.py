"""What engines search: hyperparameters, and the schedule of momentum SGD they stand for."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np
import optax

SPACE: Mapping[str, tuple[float, float]] = {
    "learning_rate": (1e-4, 3.0),
    "friction": (0.01, 1.0),
    "end": (1e-3, 1.0),
}
"""Range of each of the `Hyperparameters`; all are searched in their logarithm.

Rates are those that a policy may set (`l2o.policies.scheduler`)."""


class Hyperparameters(NamedTuple):
    """A point of the space.

    Attributes:
        learning_rate: Learning rate at the first step.
        friction: 1 less the momentum.
        end: Learning rate at the end over that at the first step, along half a cosine; 1 is a
            constant.
    """

    learning_rate: float
    friction: float
    end: float


def schedule(point: Hyperparameters, horizon: int) -> np.ndarray:
    """Compute the learning rate and the momentum of every step, shape (horizon, 2), float32.

    >>> schedule(Hyperparameters(0.5, 0.1, end=1.0), 2).tolist()
    [[0.5, 0.8999999761581421], [0.5, 0.8999999761581421]]
    """
    fraction = np.arange(horizon) / horizon
    cosine = 0.5 * (1.0 + np.cos(np.pi * fraction))
    rates = point.learning_rate * (point.end + (1.0 - point.end) * cosine)
    return np.stack([rates, np.full(horizon, 1.0 - point.friction)], axis=1).astype(np.float32)


def scheduled_sgd(rows: jax.Array) -> optax.GradientTransformation:
    """Momentum SGD that takes its rate and momentum from a schedule, shape (horizon, 2)."""
    return optax.inject_hyperparams(optax.sgd)(
        learning_rate=lambda count: rows[count, 0], momentum=lambda count: rows[count, 1]
    )
