"""Scores of final losses for aggregates over a suite, in which what is solved is solved.

With ℓ a final loss and s the scale of its task, such as the loss at the start or that of guessing,

    f = min(max(ℓ / s, floor), cap),   f = cap where ℓ is not finite,
    score = log(1 / f) / log(1 / floor),

which is 1 for every loss at or below floor · s: between 1e-6 and 1e-9 of the first loss nothing
matters, and on a logarithmic scale it would count as much as between 1 and 1e-3. A run that fails
has the worst score and is never dropped. But the interquartile mean cuts off the lowest quarter of
scores: an optimizer that fails in up to 25 % of all runs and solves the rest has a perfect 1. Give
the share of failed runs beside it, `1 - performance_profile(scores, [0.0])` where `cap` is 1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from l2o.evaluation.statistics import capped_losses

FLOOR = 1e-3
"""Fraction of a task's scale below which losses are equal, where a task has none of its own."""


def final_losses(comparisons: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Final losses of each optimizer that all rows of a `report.json` have, by its name.

    A run that diverged counts as its task's loss cap, which is no less than its loss at the start.

    Args:
        comparisons: Rows "comparisons" of `l2o.evaluation.report.read_report`, or each
            `Comparison.summary`, of as many seeds.

    Returns:
        Arrays of shape (seeds, rows): of "learned", the controls and the baselines.

    Raises:
        ValueError: If there are no rows, they are none of a report, or differ in the number of
            seeds.

    >>> row = {"learned_final_loss_by_seed": [0.5, 0.25], "controls": [], "baselines": []}
    >>> final_losses([row, row])["learned"].tolist()
    [[0.5, 0.5], [0.25, 0.25]]
    """
    try:
        rows = [
            {
                "learned": row["learned_final_loss_by_seed"],
                **{e["name"]: e["final_loss_by_seed"] for e in row["controls"]},
                **{e["name"]: e["final_loss_by_seed"] for e in row["baselines"]},
            }
            for row in comparisons
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(
            "`comparisons` must be rows of a report.json; got one without or with another type of "
            'losses by seed. Try read_report(folder)["comparisons"], or `l2o evaluate` again.'
        ) from error
    numbers = sorted({len(losses) for row in rows for losses in row.values()})
    if len(numbers) != 1:
        raise ValueError(
            "`comparisons` must be at least one row, all of as many seeds; got "
            f"{' and '.join(map(str, numbers)) or 'no'} seeds. Compare on as many for each task."
        )
    return {
        name: np.array([row[name] for row in rows], np.float64).T  # None, not finite, is NaN
        for name in (rows[0] if rows else ())
        if all(name in row for row in rows)
    }


def loss_fractions(
    losses: np.ndarray,
    scale: float | np.ndarray,
    *,
    floor: float | np.ndarray = FLOOR,
    cap: float = 1.0,
) -> np.ndarray:
    """Final losses as fractions of their task's scale, no less than `floor` and no more than `cap`.

    Args:
        losses: Final losses, shape (seeds, tasks); negative ones are below every floor, so subtract
            the least that a task's loss can be if that is not about zero.
        scale: Loss from which on a run is worth nothing, such as that of guessing or at the start;
            positive, one number, or of shape (1, tasks) or (seeds, tasks); (tasks,) will do where
            there are not as many seeds.
        floor: Fraction of the scale below which losses are equal, between 0 and 1; one number or of
            shape (tasks,). A task whose loss cannot come near zero deserves its own: the best loss
            known over the scale.
        cap: Fraction of the scale, at least 1, that a run counts as which ends above it or is not
            finite. By default such a run is worth as much as one that ends where it began.

    Returns:
        Shape (seeds, tasks), between `floor` and `cap`.

    Raises:
        ValueError: If `scale` is not positive, `floor` not between 0 and 1, `cap` not a number from
            1 on, or the shapes do not fit.

    >>> losses = np.array([[1.0], [1e-5], [1e-9], [np.nan]])
    >>> loss_fractions(losses, 2.0).tolist()
    [[0.5], [0.001], [0.001], [1.0]]
    """
    losses, scale, floor = (np.asarray(x, np.float64) for x in (losses, scale, floor))
    if losses.ndim != 2:
        raise ValueError(
            f"`losses` must be of shape (seeds, tasks); got {losses.shape}. "
            "Try losses[:, None] for seeds of one task."
        )
    check_scale(scale, *losses.shape)
    check_floor(floor, *losses.shape)
    if np.ndim(cap) > 0:
        raise ValueError(f"`cap` must be one number; got shape {np.shape(cap)}. Try cap=1.0.")
    if not 1.0 <= cap < np.inf:
        raise ValueError(f"`cap` must be at least 1 and finite; got {cap}. Try cap=1.0.")
    return np.maximum(capped_losses(losses / scale, cap), floor)


def check_scale(scale: np.ndarray, seeds: int, tasks: int) -> None:
    """Refuse scales that are not positive, or not plainly one a task or one a run."""
    is_good = np.isfinite(scale) & (scale > 0)
    if not np.all(is_good):
        raise ValueError(
            f"`scale` must be positive and finite; got {scale[~is_good][0]}. Try the losses at the "
            "start: Curves.probe_loss[:, :1] of each task, joined along axis 1."
        )
    is_clear = seeds != tasks or tasks == 1  # a row is one of tasks, and not one of seeds
    if scale.shape in {(), (1, tasks), (seeds, tasks)} or (scale.shape == (tasks,) and is_clear):
        return
    if scale.shape == (tasks,):
        hint = "scale[None] if it is one a task"
    elif scale.shape == (seeds,) and tasks == 1:
        hint = "scale[:, None]"
    elif scale.shape in {(seeds,), (1, seeds), (tasks, seeds)}:
        hint = "losses.T if the first axis of `losses` is tasks"
    else:
        hint = "Curves.probe_loss[:, :1] of each task, joined along axis 1"
    raise ValueError(
        f"`scale` must be one number, one a task, shape (1, {tasks}), or one a run, shape "
        f"({seeds}, {tasks}); got shape {scale.shape}. Try {hint}."
    )


def check_floor(floor: np.ndarray, seeds: int, tasks: int) -> None:
    """Refuse floors that are not between 0 and 1, or neither one a task nor one a run."""
    is_good = (floor > 0) & (floor < 1)
    if not np.all(is_good):
        raise ValueError(
            f"`floor` must be between 0 and 1; got {floor[~is_good][0]}. Try floor={FLOOR}."
        )
    if floor.shape not in {(), (tasks,), (1, tasks), (seeds, tasks)}:
        raise ValueError(
            f"`floor` must be one number or one a task, shape ({tasks},); got shape {floor.shape}. "
            f"Try floor={FLOOR}."
        )


def loss_scores(
    losses: np.ndarray,
    scale: float | np.ndarray,
    *,
    floor: float | np.ndarray = FLOOR,
    cap: float = 1.0,
) -> np.ndarray:
    """Score of each run: 1 where solved, 0 at its task's scale, logarithmic between.

    Args:
        losses: As for `loss_fractions`, like the others.
        scale: Loss from which on a run is worth nothing.
        floor: Fraction of the scale at which a task is solved.
        cap: Fraction of the scale that a failed run counts as; by default it scores 0.

    Returns:
        Shape (seeds, tasks), between -log(cap) / log(1 / floor) and 1.

    Raises:
        ValueError: As `loss_fractions` does.

    >>> loss_scores(np.array([[2.0], [0.002], [1e-9], [np.inf]]), 2.0).ravel().tolist()
    [0.0, 1.0, 1.0, 0.0]
    """
    fractions = loss_fractions(losses, scale, floor=floor, cap=cap)
    return np.log(1.0 / fractions) / np.log(1.0 / np.asarray(floor))


def log10_loss_ratios(
    losses: np.ndarray,
    rival: np.ndarray,
    scale: float | np.ndarray,
    *,
    floor: float | np.ndarray = FLOOR,
    cap: float = 1.0,
) -> np.ndarray:
    """Orders of magnitude by which each run ends below the rival's on the same seed.

    It is log10 of the rival's loss over the run's, each as a fraction by `loss_fractions`: 0 is a
    draw, as are two that are solved or two that fail, and 1 is a tenth of the rival's loss.

    Args:
        losses: As for `loss_fractions`, like the others.
        rival: Final losses of the rival on the same seeds and tasks.
        scale: Loss from which on a run is worth nothing.
        floor: Fraction of the scale below which losses are equal.
        cap: Fraction of the scale that a failed run counts as.

    Returns:
        Shape (seeds, tasks), between ± log10(cap / floor).

    Raises:
        ValueError: As `loss_fractions` does, or if the shapes of the losses differ.

    >>> log10_loss_ratios(np.array([[0.01, 1e-7]]), np.array([[0.1, 1e-5]]), 1.0).tolist()
    [[1.0, 0.0]]
    """
    if np.shape(losses) != np.shape(rival):
        raise ValueError(
            f"`rival` must be of the same seeds and tasks as `losses`; got shapes "
            f"{np.shape(rival)} and {np.shape(losses)}. Evaluate both on the same seeds."
        )
    own, other = (loss_fractions(x, scale, floor=floor, cap=cap) for x in (losses, rival))
    return np.log10(other / own)
