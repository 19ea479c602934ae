"""Adam at a constant rate and along a cosine, with the learning rate tuned for each task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import optax

from l2o.evaluate import draw_starts, train_settings
from l2o.task import Key, Task

LEARNING_RATES = tuple(10.0 ** (exponent / 2.0) for exponent in range(-8, 1))
"""Nine half-decades from 1e-4 to 1."""

Baseline = Callable[[float | jax.Array, int], optax.GradientTransformation]
"""`(learning_rate, num_steps) -> transformation`; the rate may be traced."""


def adam(learning_rate: float | jax.Array, num_steps: int) -> optax.GradientTransformation:
    """Adam at a constant learning rate."""
    del num_steps
    return optax.adam(learning_rate)


def adam_cosine(learning_rate: float | jax.Array, num_steps: int) -> optax.GradientTransformation:
    """Adam whose learning rate falls to zero along half a cosine over the run."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, num_steps))  # pyright: ignore[reportArgumentType]


BASELINES: Mapping[str, Baseline] = {"adam": adam, "adam_cosine": adam_cosine}
"""Schedules of Adam, each with its learning rate tuned for each task."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a grid search over learning rates found.

    Attributes:
        baseline: name of the baseline.
        learning_rates: shape (rates,).
        final_loss: shape (rates, seeds); a diverged run counts as the task's cap.
        diverged: shape (rates, seeds).
    """

    baseline: str
    learning_rates: np.ndarray
    final_loss: np.ndarray
    diverged: np.ndarray

    @property
    def best(self) -> int:
        """Index of the rate with the lowest median final loss; of equal ones, the lowest rate."""
        return int(np.argmin(np.median(self.final_loss, axis=1)))

    @property
    def learning_rate(self) -> float:
        """The rate chosen."""
        return float(self.learning_rates[self.best])

    @property
    def median_final_loss(self) -> float:
        """Median over seeds of the final loss at the rate chosen."""
        return float(np.median(self.final_loss[self.best]))

    @property
    def at_grid_edge(self) -> bool:
        """Whether the rate chosen is the grid's first or last, so that a better one may exist."""
        return self.best in (0, len(self.learning_rates) - 1)

    @property
    def label(self) -> str:
        """The baseline and its rate, for reports."""
        return f"{self.baseline} lr={self.learning_rate:.3g}"


def tune(
    key: Key,
    task: Task,
    *,
    num_steps: int,
    num_seeds: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    baselines: Mapping[str, Baseline] = BASELINES,
) -> dict[str, Tuning]:
    """Grid-searches the learning rate of each baseline; one compiled program for a whole grid.

    Raises:
        ValueError: if `learning_rates` is empty or not increasing from above zero.
    """
    rates = np.asarray(learning_rates, np.float64)
    if rates.size == 0 or rates[0] <= 0 or np.any(np.diff(rates) <= 0):
        raise ValueError(
            f"`learning_rates` must be positive and increasing; got {list(learning_rates)}. "
            "Try learning_rates=(1e-3, 1e-2, 1e-1)."
        )
    starts = draw_starts(key, task, num_seeds)
    tunings = {}
    for name, baseline in baselines.items():
        curves = train_settings(
            task,
            lambda rate, baseline=baseline: baseline(rate, num_steps),
            rates.tolist(),
            starts,
            num_steps=num_steps,
            probe_every=num_steps,
        )
        tunings[name] = Tuning(
            baseline=name,
            learning_rates=rates,
            final_loss=np.stack([c.final_loss for c in curves]),
            diverged=np.stack([c.diverged for c in curves]),
        )
    return tunings
