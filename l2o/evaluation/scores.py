"""Scores of final losses for aggregates over a suite, in which what is solved is solved.

With ℓ a final loss and s the scale of its task, such as the loss at the start or that of guessing,

    f = min(max(ℓ / s, floor), cap),   f = cap where ℓ is not finite,
    score = log(1 / f) / log(1 / floor),

which is 1 for every loss at or below floor · s: between 1e-6 and 1e-9 of the first loss nothing
matters, and on a logarithmic scale it would count as much as between 1 and 1e-3. A run that fails
has the worst score and is never dropped.
"""

import numpy as np

from l2o.evaluation.statistics import capped_losses

FLOOR = 1e-3
"""Fraction of a task's scale below which losses are equal, where a task has none of its own."""


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
            positive, one number, or of shape (tasks,) or (seeds, tasks).
        floor: Fraction of the scale below which losses are equal, between 0 and 1; one number or of
            shape (tasks,). A task whose loss cannot come near zero deserves its own: the best loss
            known over the scale.
        cap: Fraction of the scale, at least 1, that a run counts as which ends above it or is not
            finite. By default such a run is worth as much as one that ends where it began.

    Returns:
        Shape (seeds, tasks), between `floor` and `cap`.

    Raises:
        ValueError: If `scale` is not positive, `floor` not between 0 and 1, or `cap` below 1.

    >>> losses = np.array([[1.0], [1e-5], [1e-9], [np.nan]])
    >>> loss_fractions(losses, 2.0).tolist()
    [[0.5], [0.001], [0.001], [1.0]]
    """
    losses, scale = np.asarray(losses, np.float64), np.asarray(scale, np.float64)
    if not np.all(np.isfinite(scale) & (scale > 0)):
        raise ValueError(
            f"`scale` must be positive and finite; got {scale.tolist()}. "
            "Try the loss at the start, losses[:, 0] of its curve."
        )
    if not np.all((np.asarray(floor) > 0) & (np.asarray(floor) < 1)):
        raise ValueError(f"`floor` must be between 0 and 1; got {floor}. Try floor={FLOOR}.")
    if not 1.0 <= cap < np.inf:
        raise ValueError(f"`cap` must be at least 1 and finite; got {cap}. Try cap=1.0.")
    if losses.ndim != 2 or np.broadcast(losses, scale, floor).shape != losses.shape:
        raise ValueError(
            "`losses` must be of shape (seeds, tasks), and `scale` and `floor` of numbers for each "
            f"task; got shapes {losses.shape}, {scale.shape} and {np.shape(floor)}. Try losses.T "
            "if the first axis is tasks."
        )
    return np.maximum(capped_losses(losses / scale, cap), floor)


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


def loss_ratios(
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

    >>> loss_ratios(np.array([[0.01, 1e-7]]), np.array([[0.1, 1e-5]]), 1.0).tolist()
    [[1.0, 0.0]]
    """
    if np.shape(losses) != np.shape(rival):
        raise ValueError(
            f"`rival` must be of the same seeds and tasks as `losses`; got shapes "
            f"{np.shape(rival)} and {np.shape(losses)}. Evaluate both on the same seeds."
        )
    own, other = (loss_fractions(x, scale, floor=floor, cap=cap) for x in (losses, rival))
    return np.log10(other / own)
