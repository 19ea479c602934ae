"""Diverged runs, medians with their intervals, and the speed-up of one run over another."""

import functools
import warnings
from typing import Any, NamedTuple

import numpy as np

CONFIDENCE = 0.95

FEWEST_SEEDS = 8
"""Fewest values that have an interval worth the name."""


class Interval(NamedTuple):
    """A median and its interval between order statistics."""

    median: float
    low: float
    high: float


class Estimate(NamedTuple):
    """A statistic and the ends of its bootstrap interval: numbers, or arrays of one shape."""

    value: Any
    low: Any
    high: Any


def is_diverged(loss: np.ndarray, cap: float) -> np.ndarray:
    """Tell whether a loss is not finite or above the cap."""
    return ~np.isfinite(loss) | (loss > cap)


def capped_losses(loss: np.ndarray, cap: float) -> np.ndarray:
    """Convert losses to float64, with diverged ones counted as `cap`."""
    return np.where(is_diverged(loss, cap), cap, loss.astype(np.float64))


def median_interval(values: np.ndarray, *, confidence: float = CONFIDENCE) -> Interval:
    """Median and its interval between order statistics (`scipy.stats.quantile_test`).

    Whatever the distribution, it covers the median with at least the probability asked for: of 16
    values the 4th and the 13th do in 97.9 % of cases, of 8 the lowest and the highest in 99.2 %
    (David and Nagaraja 2003, section 7.1). A percentile bootstrap gives no such guarantee.

    Args:
        values: Finite values, at least 8, shape (seeds,).
        confidence: Least probability that the two-sided interval covers the median.

    Raises:
        ValueError: If `values` are fewer than 8, not one-dimensional or not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.all(np.isfinite(values)):
        raise ValueError(
            f"`values` must be finite, one a seed; got {values.tolist()}. "
            "Count a diverged run as the task's loss cap."
        )
    check_seeds(values.size)
    low, high = np.sort(values)[list(ranks_around_median(values.size, confidence))] + 0.0  # no -0
    return Interval(float(np.median(values)), float(low), float(high))


@functools.cache
def ranks_around_median(size: int, confidence: float) -> tuple[int, int]:
    """Ranks, from 0 up, of the two order statistics; the same for all values of one size."""
    import scipy.stats  # half a second, which those who only meta-train need not wait

    ranks = np.arange(size)
    test = scipy.stats.quantile_test(ranks, q=float(np.median(ranks)))  # pyright: ignore[reportArgumentType]
    ends = test.confidence_interval(confidence)
    return int(ends.low), int(ends.high)


def check_seeds(num_seeds: int, argument: str = "num_seeds") -> None:
    """Raise a `ValueError` unless there are enough seeds for an interval."""
    if num_seeds < FEWEST_SEEDS:
        raise ValueError(
            f"`{argument}` must be at least {FEWEST_SEEDS}, as fewer give no interval; got "
            f"{num_seeds}. Try {argument}=16."
        )


def mean_interval(values: np.ndarray, *, confidence: float = CONFIDENCE) -> Estimate:
    """Mean and its percentile-bootstrap interval (`scipy.stats.bootstrap`, 9999 resamples).

    The resampling is seeded, so equal values give equal intervals.

    Args:
        values: Finite values, at least one, shape (samples,).
        confidence: Probability that the two-sided interval covers the mean.
    """
    import scipy.stats

    if np.ptp(values) == 0:
        return Estimate(*[float(values[0])] * 3)
    with warnings.catch_warnings():
        # The standard error, which is not used, may be degenerate where the interval is not.
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        ends = scipy.stats.bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return Estimate(float(np.mean(values)), float(ends.low), float(ends.high))


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


def steps_to(steps: np.ndarray, losses: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Steps to a target on each seed, at least 1; `inf` where it is never reached.

    Args:
        steps: Increasing numbers of steps, shape (probes,).
        losses: Probe losses, shape (seeds, probes).
        targets: Loss to reach on each seed, shape (seeds,).
    """
    reached = [first_reach(steps, row, t) for row, t in zip(losses, targets, strict=True)]
    return np.maximum(1.0, reached)


def targets(losses: np.ndarray) -> np.ndarray:
    """What others are to reach: the final loss of each run, but no less than 2^-23 of its first.

    By convention a run that ends between zero and there has solved its task: float32 does not
    resolve less beside the first loss.

    Args:
        losses: Probe losses, shape (seeds, probes).
    """
    first, final = losses[:, 0], losses[:, -1]
    resolved = np.finfo(np.float32).eps * first
    return np.where((final >= 0.0) & (final < resolved), resolved, final)


def speedups(
    steps: np.ndarray, learned: np.ndarray, baseline: np.ndarray, fastest: np.ndarray | None = None
) -> np.ndarray:
    """Number of times fewer steps that the learned optimizer needs, for each seed.

    With L the baseline's final loss on a seed (`targets`), that is the first step at which the
    fastest is at or below L, or where it never is the baseline itself, over the first step at which
    the learned optimizer is on the same seed (`first_reach`, the same rule for all). 1 is a draw; 0
    means that the learned run never reached L. Counts are at least 1, so where a baseline ends no
    lower than it began, the speed-up is 1 unless the learned run, too, never got there.

    Args:
        steps: Increasing numbers of steps, shape (probes,).
        learned: Probe losses of the learned optimizer, shape (seeds, probes); a diverged loss
            counts as the task's cap.
        baseline: Probe losses of the baseline at the setting that ends lowest, likewise.
        fastest: Probe losses of what is expected to be first there, likewise: the baseline at
            another setting, or another baseline. It must not be chosen on these seeds: the earliest
            of several noisy curves on each seed is early by luck.

    Returns:
        Shape (seeds,); 0 where L is never reached, so no seed is dropped.
    """
    goals = targets(baseline)
    own = steps_to(steps, baseline, goals)
    theirs = own if fastest is None else steps_to(steps, fastest, goals)
    return np.where(np.isfinite(theirs), theirs, own) / steps_to(steps, learned, goals)
