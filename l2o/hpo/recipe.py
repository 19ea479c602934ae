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
        learning_rate: at the start.
        friction: 1 less the momentum.
        end: the rate at the end over that at the start, along half a cosine; 1 is a constant.
    """

    learning_rate: float
    friction: float
    end: float


def recipe(point: Hyperparameters, num_steps: int) -> np.ndarray:
    """The rate and the momentum of every step, shape (num_steps, 2), float32."""
    fraction = np.arange(num_steps) / num_steps
    cosine = 0.5 * (1.0 + np.cos(np.pi * fraction))
    rates = point.learning_rate * (point.end + (1.0 - point.end) * cosine)
    return np.stack([rates, np.full(num_steps, 1.0 - point.friction)], axis=1).astype(np.float32)


def follow(rows: jax.Array) -> optax.GradientTransformation:
    """Momentum SGD that takes its rate and momentum from a recipe, shape (num_steps, 2)."""
    return optax.inject_hyperparams(optax.sgd)(
        learning_rate=lambda count: rows[count, 0], momentum=lambda count: rows[count, 1]
    )
