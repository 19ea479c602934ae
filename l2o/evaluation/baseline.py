"""An optimizer to compare with: how it is made from its hyperparameters, and what is tuned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
import optax

Number = float | jax.Array

Config = Mapping[str, Number]
"""Hyperparameters by name, each a number that may be traced."""


@dataclass(frozen=True)
class Range:
    """Values of a hyperparameter that a random search draws from.

    Attributes:
        low: Smallest value.
        high: Largest value.
        default: Value while the learning rate alone is searched for.
        scale: What is uniform: the value, its logarithm, or for a "decay" that of 1 - value.
    """

    low: float
    high: float
    default: float
    scale: Literal["linear", "log", "decay"] = "linear"

    def at(self, fraction: float) -> float:
        """The value at a fraction of the range, between 0 and 1."""
        if self.scale == "linear":
            return self.low + fraction * (self.high - self.low)
        if self.scale == "log":
            return self.low * (self.high / self.low) ** fraction
        return 1.0 - (1.0 - self.low) * ((1.0 - self.high) / (1.0 - self.low)) ** fraction


@dataclass(frozen=True)
class Baseline:
    """An optimizer to compare with, and what of it is tuned for each task and horizon.

    Attributes:
        optimizer: Which one it is, for headings.
        description: What it is and how it is scheduled, in a sentence.
        make: `(config, horizon) -> transformation`; both may be traced. Besides "learning_rate" and
            the names in `space` the config has "horizon_fraction": where in the run the schedule
            ends.
        learning_rates: Half-decades to begin the search at; a single one is used as it is, and
            nothing is tuned.
        space: What else the random search draws.
        is_scheduled: Whether the rate falls to zero, so that a shorter horizon may be faster to a
            target.
    """

    optimizer: str
    description: str
    make: Callable[[Config, Number], optax.GradientTransformation]
    learning_rates: tuple[float, ...]
    space: Mapping[str, Range] = field(default_factory=lambda: MappingProxyType({}))
    is_scheduled: bool = False

    @property
    def is_tuned(self) -> bool:
        """Whether there is anything to search for."""
        return len(self.learning_rates) > 1

    @property
    def defaults(self) -> dict[str, float]:
        """Hyperparameters other than the learning rate before anything is tuned."""
        return {name: r.default for name, r in self.space.items()} | {"horizon_fraction": 1.0}


def half_decades(low: int, high: int) -> tuple[float, ...]:
    """Rates from 10^(low / 2) to 10^(high / 2), each half a decade above the one before."""
    return tuple(10.0 ** (exponent / 2.0) for exponent in range(low, high + 1))


def schedule(config: Config, horizon: Number, decay: Literal["linear", "cosine"]) -> optax.Schedule:
    """A linear rise over the fraction "warmup" of the run, then a fall to zero at its end."""
    length = config["horizon_fraction"] * horizon
    warmup = config.get("warmup", 0.0) * length

    def rate(count: jax.typing.ArrayLike) -> jax.Array:
        rise = jnp.minimum(1.0, (count + 1.0) / jnp.maximum(warmup, 1.0))
        left = jnp.clip((length - count) / jnp.maximum(length - warmup, 1.0), 0.0, 1.0)
        fall = left if decay == "linear" else 0.5 - 0.5 * jnp.cos(jnp.pi * left)
        return config["learning_rate"] * rise * fall

    return rate


def scaled(
    optimizer: optax.GradientTransformation | Callable[..., optax.GradientTransformation],
) -> Baseline:
    """Make a control whose updates are multiplied by a factor, which is tuned as a rate is.

    Args:
        optimizer: Transformation, or function that makes it from `horizon=`, a traced scalar: part
            of the run, where another than the whole is tried.
    """

    def make(config: Config, horizon: Number) -> optax.GradientTransformation:
        factor = optax.scale(config["learning_rate"])
        if not callable(optimizer):
            return optax.chain(optimizer, factor)
        return optax.chain(optimizer(horizon=config["horizon_fraction"] * horizon), factor)

    return Baseline(
        "control",
        "Updates times the best factor.",
        make,
        half_decades(-4, 3),
        is_scheduled=callable(optimizer),
    )
