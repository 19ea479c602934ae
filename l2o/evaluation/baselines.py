"""Adam and momentum SGD at a constant rate and along a cosine, each tuned for each task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
import optax

from l2o.evaluation.evaluate import draw_starts, train_settings
from l2o.task import Key, Task

LEARNING_RATES = tuple(10.0 ** (exponent / 2.0) for exponent in range(-8, 1))
"""Nine half-decades from 1e-4 to 1."""

Baseline = Callable[[float | jax.Array, int], optax.GradientTransformation]
"""`(learning_rate, horizon) -> transformation`; the rate may be traced."""


def adam(learning_rate: float | jax.Array, horizon: int) -> optax.GradientTransformation:
    """Adam at a constant learning rate."""
    del horizon
    return optax.adam(learning_rate)


def adam_cosine(learning_rate: float | jax.Array, horizon: int) -> optax.GradientTransformation:
    """Adam whose learning rate falls to zero along half a cosine over the run."""
    return optax.adam(optax.cosine_decay_schedule(learning_rate, horizon))  # pyright: ignore[reportArgumentType]


def sgdm(learning_rate: float | jax.Array, horizon: int) -> optax.GradientTransformation:
    """Gradient descent with momentum 0.9 at a constant learning rate."""
    del horizon
    return optax.sgd(learning_rate, momentum=0.9)


def sgdm_cosine(learning_rate: float | jax.Array, horizon: int) -> optax.GradientTransformation:
    """Gradient descent with momentum 0.9 and a rate that falls to zero along half a cosine."""
    return optax.sgd(optax.cosine_decay_schedule(learning_rate, horizon), momentum=0.9)  # pyright: ignore[reportArgumentType]


BASELINES: Mapping[str, Baseline] = {
    "adam": adam,
    "adam_cosine": adam_cosine,
    "sgdm": sgdm,
    "sgdm_cosine": sgdm_cosine,
}
"""Baselines by name; the learning rate of each is tuned for each task."""

OPTIMIZERS: Mapping[str, str] = {
    "adam": "Adam",
    "adam_cosine": "Adam",
    "sgdm": "momentum SGD",
    "sgdm_cosine": "momentum SGD",
}
"""Which optimizer a baseline is, for headings."""

DEFAULT_BASELINES = ("adam", "adam_cosine")
"""Baselines of a report unless said otherwise."""


def check_baselines(names: Sequence[str], argument: str = "baselines") -> None:
    """Raise a `ValueError` that says what to type unless there are such baselines."""
    for name in names:
        if name not in BASELINES:
            raise ValueError(
                f"`{argument}` must be among {', '.join(BASELINES)}; got {name}. "
                f"Try {' '.join(DEFAULT_BASELINES)}."
            )
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"`{argument}` must name different ones, at least one; got "
            f"{' '.join(names) or 'none'}. Try {' '.join(DEFAULT_BASELINES)}."
        )


@dataclass(frozen=True, eq=False)
class Tuning:
    """Result of a grid search over learning rates.

    Attributes:
        baseline: Name of the baseline.
        learning_rates: Grid, shape (rates,).
        final_loss: Final losses, shape (rates, seeds); a diverged run counts as the task's cap.
        diverged: Whether each run diverged, shape (rates, seeds).
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
    horizon: int,
    num_seeds: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    baselines: Sequence[str] = DEFAULT_BASELINES,
) -> dict[str, Tuning]:
    """Search a grid for the best learning rate of each baseline, in one compiled program each.

    Args:
        key: Random key.
        task: Task to train.
        horizon: Inner steps of each run.
        num_seeds: Number of runs at each rate.
        learning_rates: Grid of learning rates.
        baselines: Names in `BASELINES`.

    Raises:
        ValueError: If `learning_rates` is empty or not increasing from above zero, or a baseline is
            unknown.
    """
    check_baselines(baselines)
    rates = np.asarray(learning_rates, np.float64)
    if rates.size == 0 or rates[0] <= 0 or np.any(np.diff(rates) <= 0):
        raise ValueError(
            f"`learning_rates` must be positive and increasing; got {list(learning_rates)}. "
            "Try learning_rates=(1e-3, 1e-2, 1e-1)."
        )
    starts = draw_starts(key, task, num_seeds)
    tunings = {}
    for name in baselines:
        baseline = BASELINES[name]
        curves = train_settings(
            task,
            lambda rate, baseline=baseline: baseline(rate, horizon),
            rates.tolist(),
            starts,
            horizon=horizon,
            probe_every=horizon,
        )
        tunings[name] = Tuning(
            baseline=name,
            learning_rates=rates,
            final_loss=np.stack([c.final_loss for c in curves]),
            diverged=np.stack([c.diverged for c in curves]),
        )
    return tunings
