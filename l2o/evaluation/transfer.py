"""What optimizers that were meta-trained on one family of tasks score on others, as a table."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from l2o.evaluation.aggregates import check_samples, interquartile_mean, stratified_bootstrap
from l2o.evaluation.statistics import CONFIDENCE, Estimate


class TransferResult(NamedTuple):
    """Scores of one meta-trained optimizer on one family of tasks.

    Attributes:
        name: Name of the run of meta-training.
        trained_on: Family that it was meta-trained on.
        tested_on: Family that it was evaluated on.
        scores: Score of each run, shape (seeds, tasks of the family tested on).
    """

    name: str
    trained_on: str
    tested_on: str
    scores: np.ndarray


class TransferMatrix(NamedTuple):
    """Statistics of scores with their intervals, shape (trained_on, tested_on); NaN without any.

    Attributes:
        trained_on: Names of rows.
        tested_on: Names of columns.
        estimate: Statistic and ends of its interval.
        num_optimizers: How many runs of meta-training each is the mean over.
    """

    trained_on: tuple[str, ...]
    tested_on: tuple[str, ...]
    estimate: Estimate
    num_optimizers: np.ndarray


def transfer_matrix(
    results: Iterable[tuple[str, str, str, np.ndarray]],
    statistic: Callable[[np.ndarray], Any] = interquartile_mean,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> TransferMatrix:
    """Arrange results as a table of trained on by tested on, with bootstrap intervals.

    Several runs of meta-training on one family are averaged, after the statistic of each. They are
    resampled alike, as their runs are of the same seeds; the interval is over seeds, for these runs
    of meta-training. Rows and columns are in the order in which they first occur, those
    families that were both trained and tested on first and in the same order, so that they
    are the diagonal.

    Args:
        results: Rows `TransferResult`, or tuples of the same four.
        statistic: Number to compute of scores of shape (..., seeds, tasks).
        num_resamples: Number of resamples.
        seed: Seed of the resampling; equal seeds give equal intervals.
        confidence: Probability that an interval is meant to cover the statistic with.

    Raises:
        ValueError: If there are no results, one is there twice, those of one cell differ in
            shape, scores cannot be resampled (`stratified_bootstrap`), or `statistic` does not give
            one number.

    >>> scores = np.arange(16.0).reshape(8, 2)
    >>> rows = [("a", "mlps", "mlps", scores), ("a", "mlps", "convs", scores - 1.0)]
    >>> transfer_matrix(rows).estimate.value.tolist()
    [[7.5, 6.5]]
    """
    rows = [TransferResult(*row) for row in results]
    if not rows:
        raise ValueError(
            "`results` must have at least one row; got none. Try [(name, trained_on, tested_on, "
            "scores)]."
        )
    cells: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for row in rows:
        cell = cells.setdefault((row.trained_on, row.tested_on), {})
        if row.name in cell:
            raise ValueError(
                f"`results` must have one row of each; got two of {row.name} trained on "
                f"{row.trained_on}, tested on {row.tested_on}. Put all seeds and tasks into one "
                "array of scores."
            )
        cell[row.name] = check_result(row, statistic)
        first, *_ = cell
        if cell[row.name].shape != cell[first].shape:
            raise ValueError(
                f"`results` trained on {row.trained_on}, tested on {row.tested_on} must be of the "
                f"same seeds and tasks; got shapes {cell[first].shape} of {first} and "
                f"{cell[row.name].shape} of {row.name}. Evaluate both on the same seeds."
            )
    trained, tested = (dict.fromkeys(names) for names in zip(*cells, strict=True))
    both = [name for name in trained if name in tested]
    trained_on, tested_on = (tuple(dict.fromkeys([*both, *names])) for names in (trained, tested))

    def average(*samples: np.ndarray) -> Any:
        return np.mean([statistic(sample) for sample in samples], axis=0)

    shape = len(trained_on), len(tested_on)
    values, count = np.full((3, *shape), np.nan), np.zeros(shape, np.int64)
    for (trained_name, tested_name), cell in cells.items():
        at = trained_on.index(trained_name), tested_on.index(tested_name)
        samples = list(cell.values())
        values[:, *at] = stratified_bootstrap(
            samples,
            average,
            paired=True,
            num_resamples=num_resamples,
            seed=seed,
            confidence=confidence,
        )
        count[at] = len(samples)
    return TransferMatrix(trained_on, tested_on, Estimate(*values), count)


def check_result(row: TransferResult, statistic: Callable[[np.ndarray], Any]) -> np.ndarray:
    """Convert a row's scores to float64, and refuse those that have no statistic, by its name."""
    try:
        (scores,) = check_samples([row.scores], paired=False)
        value = statistic(scores)
    except ValueError as error:
        raise ValueError(
            f"`results` of {row.name}, trained on {row.trained_on}, tested on {row.tested_on}: "
            f"{error}"
        ) from error
    if np.ndim(value) > 0:
        raise ValueError(
            "`statistic` must give one number for scores of shape (seeds, tasks); got shape "
            f"{np.shape(value)}. Try interquartile_mean, or one point of a profile: "
            "lambda scores: performance_profile(scores, [0.5])[..., 0]."
        )
    return scores
