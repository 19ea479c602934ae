"""Diverged runs, medians with bootstrap intervals, and the speed-up of one run over another."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A median and its bootstrap interval."""

    median: float
    low: float
    high: float


class MeanInterval(NamedTuple):
    """A mean and its bootstrap interval."""

    value: float
    low: float
    high: float


def is_diverged(loss: np.ndarray, cap: float) -> np.ndarray:
    """Tell whether a loss is not finite or above the cap."""
    return ~np.isfinite(loss) | (loss > cap)


def capped_losses(loss: np.ndarray, cap: float) -> np.ndarray:
    """Convert losses to float64, with diverged ones counted as `cap`."""
    return np.where(is_diverged(loss, cap), cap, loss.astype(np.float64))


def median_interval(values: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval:
    """Median and its percentile-bootstrap interval (`scipy.stats.bootstrap`, 9999 resamples).

    The resampling is seeded, so equal values give equal intervals. One value is its own interval.

    Args:
        values: Finite values, shape (seeds,).
        confidence: Probability that the two-sided interval covers the median.

    Raises:
        ValueError: If `values` is empty, not one-dimensional or not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or values.size == 0 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"`values` must be finite, one a seed; got {values.tolist()}. "
            "Count a diverged run as the task's loss cap."
        )
    return Interval(float(np.median(values)), *bootstrap_ends(values, np.median, confidence))


def mean_interval(values: np.ndarray, *, confidence: float = CONFIDENCE) -> MeanInterval:
    """Mean and its interval, as `median_interval` computes it.

    Args:
        values: Finite values, at least one, shape (samples,).
        confidence: Probability that the two-sided interval covers the mean.
    """
    return MeanInterval(float(np.mean(values)), *bootstrap_ends(values, np.mean, confidence))


def bootstrap_ends(
    values: np.ndarray, statistic: Callable[..., np.ndarray], confidence: float
) -> tuple[float, float]:
    """Ends of the percentile-bootstrap interval of a statistic, with a fixed seed."""
    import scipy.stats  # half a second, which those who only meta-train need not wait

    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    with warnings.catch_warnings():
        # The standard error, which is not used, may be degenerate where the interval is not.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        interval = scipy.stats.bootstrap(
            (values,),
            statistic,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(interval.low), float(interval.high)


def first_reach(steps: np.ndarray, losses: np.ndarray, target: float) -> float:
    """The first step at which a curve is at or below `target`; `inf` if it never is.

    Between two probes the logarithm of the loss is interpolated linearly; the loss itself where
    one of the two is not positive.

    Args:
        steps: Increasing numbers of steps, shape (probes,).
        losses: Loss at each of them, shape (probes,).
        target: Loss to reach.
    """
    reached = np.flatnonzero(losses <= target)
    if reached.size == 0:
        return np.inf
    i = reached[0]
    if i == 0:
        return float(steps[0])
    points = np.array([losses[i - 1], losses[i], target], np.float64)
    if np.all(points > 0):
        points = np.log(points)
    before, after, at = points
    return float(steps[i - 1] + (steps[i] - steps[i - 1]) * (before - at) / (before - after))


def speedups(steps: np.ndarray, learned: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Number of times fewer steps that the learned optimizer needs, for each seed.

    With L the baseline's final loss on a seed, that is the first step at which the baseline is at
    or below L, over the first step at which the learned optimizer is on the same seed
    (`first_reach`, the same rule for both). 1 is a draw; 0 means that the learned run never
    reached L. Both counts are at least 1, so where a baseline ends no lower than it began,
    the speed-up is 1 unless the learned run, too, never got there.

    Args:
        steps: Increasing numbers of steps, shape (probes,).
        learned: Probe losses of the learned optimizer, shape (seeds, probes); a diverged loss
            counts as the task's cap.
        baseline: Probe losses of the baseline, likewise.

    Returns:
        Shape (seeds,); 0 where L is never reached, so no seed is dropped.
    """
    return np.array(
        [
            max(1.0, first_reach(steps, theirs, theirs[-1]))
            / max(1.0, first_reach(steps, ours, theirs[-1]))
            for ours, theirs in zip(learned, baseline, strict=True)
        ]
    )
