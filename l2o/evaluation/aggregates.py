"""Aggregates of scores over the seeds and tasks of a suite, and their bootstrap intervals.

Scores have shape (seeds, tasks), more is better, and every run has one: what failed has the worst
(`l2o.evaluation.scores`). Statistics reduce the last two axes, so that they take many resamples at
once. After Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical
precipice", section 4, and Dolan and Moré 2002, "Benchmarking optimization software with performance
profiles"; the numbers are those of rliable 1.2.0.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from l2o.evaluation.statistics import CONFIDENCE, FEWEST_SEEDS, Estimate

CHUNK = 2**20
"""Scores that are resampled at a time."""


def interquartile_mean(scores: np.ndarray) -> Any:
    """Mean of the middle half of all scores, whatever their seed and task.

    A quarter of the scores, rounded down, is cut off at either end (`scipy.stats.trim_mean`), so
    that a few scores however low or high do not matter.

    Args:
        scores: Finite scores, shape (..., seeds, tasks).

    Returns:
        Shape (...).

    Raises:
        ValueError: If `scores` are not finite or have fewer than two axes.

    >>> interquartile_mean(np.array([[-1000.0, 2.0], [3.0, 4.0]]))
    np.float64(2.5)
    """
    import scipy.stats  # half a second, which those who only meta-train need not wait

    scores = check_scores(scores)
    return scipy.stats.trim_mean(scores.reshape(*scores.shape[:-2], -1), 0.25, axis=-1)


def mean(scores: np.ndarray) -> Any:
    """Mean of all scores; arguments and errors as those of `interquartile_mean`."""
    return np.mean(check_scores(scores), axis=(-2, -1))


def task_median(scores: np.ndarray) -> Any:
    """Median over tasks of the mean over seeds; arguments as those of `interquartile_mean`."""
    return np.median(np.mean(check_scores(scores), axis=-2), axis=-1)


def optimality_gap(scores: np.ndarray, goal: float = 1.0) -> Any:
    """Mean of what scores lack to a goal, beyond which more does not count: less is better.

    Args:
        scores: Finite scores, shape (..., seeds, tasks).
        goal: Score that is as good as any above it.

    Returns:
        Shape (...).
    """
    return goal - np.mean(np.minimum(check_scores(scores), goal), axis=(-2, -1))


def performance_profile(scores: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fraction of all scores, whatever their seed and task, that are above each threshold.

    A score equal to the threshold is not above it. The area under the profile from a threshold
    on is the mean of what scores exceed it by. For a band that covers each point, not the
    whole profile, bootstrap it:

    >>> scores = np.arange(16.0).reshape(8, 2)
    >>> performance_profile(scores, [-1.0, 7.0, 15.0]).tolist()
    [1.0, 0.5, 0.0]
    >>> band = stratified_bootstrap(scores, lambda s: performance_profile(s, [-1.0, 7.0, 15.0]))
    >>> band.low.shape
    (3,)

    Args:
        scores: Scores, which may be infinite, shape (..., seeds, tasks).
        thresholds: Shape (thresholds,).

    Returns:
        Shape (..., thresholds).

    Raises:
        ValueError: If `scores` are NaN or have fewer than two axes, or `thresholds` not one.
    """
    scores = check_scores(scores, finite=False)
    above = [np.mean(scores > t, axis=(-2, -1)) for t in check_grid(thresholds, "thresholds")]
    return np.stack(above, axis=-1)


def probability_of_improvement(x: np.ndarray, y: np.ndarray) -> Any:
    """Probability that a run of x scores above one of y on a task drawn at random.

    On each task it is the fraction of all pairs of seeds in which x is above y, ties counted half
    (the Mann-Whitney statistic over the number of pairs); tasks are averaged. It says nothing of
    how much better x is.

    Args:
        x: Scores, which may be infinite, shape (..., seeds, tasks).
        y: Scores of the other on the same tasks; the number of seeds may differ.

    Returns:
        Shape (...).

    Raises:
        ValueError: If scores are NaN, have fewer than two axes, or the tasks differ in number.

    >>> probability_of_improvement(np.array([[1.0], [2.0]]), np.array([[1.0], [0.0]]))
    np.float64(0.875)
    """
    x, y = check_scores(x, "x", finite=False), check_scores(y, "y", finite=False)
    if x.shape[-1] != y.shape[-1]:
        raise ValueError(
            f"`y` must be of the same tasks as `x`, which are the last axis; got {y.shape[-1]} "
            f"and {x.shape[-1]}. Try y.T if its first axis is tasks."
        )
    wins = [
        np.mean((one > y) + 0.5 * (one == y), axis=(-2, -1))
        for one in (x[..., i : i + 1, :] for i in range(x.shape[-2]))
    ]
    return np.mean(wins, axis=0)


def step_ratio_profile(steps: np.ndarray, ratios: Sequence[float] | np.ndarray) -> np.ndarray:
    """Fraction of runs in which each optimizer needs at most so many times the fewest steps.

    This is the performance profile of Dolan and Moré 2002, section 2, of the steps to a target: at
    ratio 1 it is how often an optimizer is first, or among them; at large ratios how often it gets
    there at all. A run that no optimizer finishes counts against all. Whom an optimizer is compared
    with changes its profile, so of two curves that cross, which is better may depend on a third
    (Gould and Scott 2016).

    Args:
        steps: Steps to the target, positive, infinite where it is never reached; shape
            (..., optimizers, seeds, tasks).
        ratios: At least 1, shape (ratios,); at an infinite one it is how often the target is
            reached.

    Returns:
        Shape (..., optimizers, ratios).

    Raises:
        ValueError: If `steps` are not positive, none, or have fewer than three axes, or `ratios`
            are below 1.

    >>> steps = np.array([[[10.0, np.inf]], [[15.0, 30.0]]])  # 2 optimizers, 1 seed, 2 tasks
    >>> step_ratio_profile(steps, [1.0, 1.5]).tolist()
    [[0.5, 0.5], [0.5, 1.0]]
    """
    steps = np.asarray(steps, np.float64)
    if steps.ndim < 3 or 0 in steps.shape:
        raise ValueError(
            "`steps` must be of shape (optimizers, seeds, tasks); got "
            f"{steps.shape}. Try np.stack([steps, rival_steps])."
        )
    if not np.all(steps > 0):
        raise ValueError(
            f"`steps` must be positive; got lowest {np.min(steps)}. Give np.inf where the target "
            "is never reached."
        )
    ratios = check_grid(ratios, "ratios")
    if not np.all(ratios >= 1.0):
        raise ValueError(
            f"`ratios` must be at least 1, as none needs fewer than the fewest steps; got "
            f"{ratios.min()}. Try np.geomspace(1, 10)."
        )
    fewest = np.min(steps, axis=-3, keepdims=True)
    relative = steps / np.where(np.isfinite(fewest), fewest, 1.0)  # where none finishes, infinite
    is_reached = np.isfinite(relative)
    within = [np.mean(is_reached & (relative <= r), axis=(-2, -1)) for r in ratios]
    return np.stack(within, axis=-1)


def stratified_bootstrap(
    scores: np.ndarray | Sequence[np.ndarray],
    statistic: Callable[..., Any],
    *,
    paired: bool = False,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A statistic of scores and its percentile interval over resampled seeds.

    In each resample every task keeps its number of scores, drawn with replacement from its own,
    independently of the other tasks (Agarwal et al. 2021, section 4.1). The interval is therefore
    about other seeds on the same tasks; it says nothing of other tasks.

    Like every percentile bootstrap it is too narrow for few seeds. Over many tasks the 95 %
    interval of a mean of n seeds covers in P(|z| < 1.96 √(1 - 1/n)) of cases, 93.3 % for 8 and
    94.2 % for 16. On a single task of normal scores z is Student's t: 84.6 % for 5, which are
    refused, 89.1 % for 8 and 92.3 % for 16. Where runs fail now and then and none of these did, all
    scores may be equal; then the interval has no width, whatever the chance that a run fails.

    Args:
        scores: Scores of one optimizer, an array or nested list of shape (seeds, tasks), or a
            sequence of them for a statistic that takes several.
        statistic: Function of as many arrays of shape (..., seeds, tasks), which reduces the last
            two axes to any of its own, such as `interquartile_mean`.
        paired: Whether all of `scores` are resampled alike, where they are of the same seeds and
            the statistic compares equal seeds (`probability_of_improvement` compares all); else
            each on its own.
        num_resamples: Number of resamples.
        seed: Seed of the resampling; equal seeds give equal intervals.
        confidence: Probability that the interval is meant to cover the statistic with.

    Raises:
        ValueError: If `scores` are NaN, not of shape (seeds, tasks), of fewer than 8 seeds, or
            paired and of different shapes; or if `statistic` does not keep leading axes.

    >>> x = np.arange(16.0).reshape(8, 2)
    >>> gain = lambda x, y: interquartile_mean(x) - interquartile_mean(y)
    >>> stratified_bootstrap([x + 1.0, x], gain, paired=True)
    Estimate(value=1.0, low=1.0, high=1.0)
    """
    samples = check_samples(split_samples(scores), paired)
    if num_resamples < 1 or not 0.0 < confidence < 1.0:
        raise ValueError(
            "`num_resamples` must be at least 1 and `confidence` between 0 and 1; got "
            f"{num_resamples} and {confidence}. Try num_resamples=2000, confidence=0.95."
        )
    value = np.asarray(statistic(*samples))
    # Each sample has a stream of its own, which chunks do not change.
    streams = np.random.default_rng(seed).spawn(1 if paired else len(samples))
    size = max(1, CHUNK // sum(sample.size for sample in samples))
    estimates = []
    for start in range(0, num_resamples, size):
        number = min(size, num_resamples - start)
        indices = [
            rng.integers(len(sample), size=(number, *sample.shape))
            for rng, sample in zip(streams, samples, strict=False)
        ] * (len(samples) if paired else 1)
        drawn = np.asarray(statistic(*map(resample, samples, indices)))
        if drawn.shape != (number, *value.shape):
            raise ValueError(
                "`statistic` must reduce the last two axes, seeds and tasks, and keep those before "
                f"them; got shape {drawn.shape} of {number} resamples and {value.shape} of the "
                "scores. Try lambda scores: scores.mean((-2, -1))."
            )
        estimates.append(drawn)
    ends = percentile_interval(np.concatenate(estimates), confidence)
    return Estimate(*(x if value.ndim else float(x) for x in (value, *ends)))


def resample(scores: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Take the scores of seeds that were drawn for each task: (resamples, seeds, tasks).

    Args:
        scores: Shape (seeds, tasks).
        indices: Seeds that were drawn, shape (resamples, seeds, tasks).
    """
    return scores[indices, np.arange(scores.shape[1])]


def percentile_interval(estimates: np.ndarray, confidence: float) -> np.ndarray:
    """Lower and upper ends of the central interval of estimates along their first axis.

    Between two estimates it interpolates, except where one of them is infinite: there an end is the
    estimate itself that at least so many are at or below.
    """
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    is_finite = np.all(np.isfinite(estimates), axis=0)
    ends = np.quantile(np.where(is_finite, estimates, 0.0), tails, axis=0)
    if np.all(is_finite):
        return ends
    return np.where(is_finite, ends, np.quantile(estimates, tails, axis=0, method="inverted_cdf"))


def split_samples(scores: Any) -> list[Any]:
    """List the samples of several optimizers; an array or nested list of numbers is of one."""
    if hasattr(scores, "shape"):
        return [scores]
    several = list(scores)
    if several and not any(hasattr(x, "shape") or np.ndim(x) > 1 for x in several):
        return [scores]
    return several


def check_samples(samples: Sequence[np.ndarray], paired: bool) -> list[np.ndarray]:
    """Convert arrays of scores to float64, and refuse those that cannot be resampled."""
    found = [check_scores(sample, finite=False) for sample in samples]
    if not found or any(s.ndim != 2 or len(s) < FEWEST_SEEDS for s in found):
        raise ValueError(
            f"`scores` must be of shape (seeds, tasks) with at least {FEWEST_SEEDS} seeds, as an "
            f"interval of fewer is too narrow; got {[s.shape for s in found]}. Try scores.T if the "
            "first axis is tasks, list(scores) if it is optimizers."
        )
    if paired and len({s.shape for s in found}) > 1:
        raise ValueError(
            "`scores` must be of the same seeds and tasks to be paired; got shapes "
            f"{[s.shape for s in found]}. Try paired=False."
        )
    return found


def check_scores(
    scores: np.ndarray, argument: str = "scores", *, finite: bool = True
) -> np.ndarray:
    """Convert scores to float64, and refuse what is NaN, infinite or has fewer than two axes."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim < 2 or 0 in scores.shape:
        raise ValueError(
            f"`{argument}` must be of shape (seeds, tasks); got {scores.shape}. "
            "Try scores[:, None] for seeds of one task."
        )
    is_bad = ~np.isfinite(scores) if finite else np.isnan(scores)
    if np.any(is_bad):
        raise ValueError(
            f"`{argument}` must be {'finite' if finite else 'numbers'}; got {np.sum(is_bad)} of "
            f"{scores.size} that are not. Count a failed run as the worst score: try loss_scores."
        )
    return scores


def check_grid(values: Sequence[float] | np.ndarray, argument: str) -> np.ndarray:
    """Convert where a profile is computed to float64, and refuse what is not a row of numbers."""
    grid = np.asarray(values, np.float64)
    if grid.ndim != 1 or grid.size == 0 or np.any(np.isnan(grid)):
        raise ValueError(
            f"`{argument}` must be numbers in a row; got shape {grid.shape}. Try {argument}=[1.0]."
        )
    return grid
