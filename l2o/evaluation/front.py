"""Fronts of several objectives: costs of runs, what none dominates, hypervolume.

Every objective is a cost, to be as low as it can. A front is what is not dominated among points:
the means over seeds of an optimizer's costs, of a policy that is told what each reward counts at
several preferences. The hypervolume is what of the box from the best mean cost of anybody in each
objective to the reference a front dominates, as a share (Zitzler and Thiele 1998, by moocore). Its
interval is a percentile bootstrap over seeds, which all share: of noisy points the best are chosen
anew in each resample, so all hypervolumes are a little high.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import moocore
import numpy as np

from l2o.evaluation.statistics import CONFIDENCE, Estimate, capped_losses
from l2o.evaluation.training import Curves, finite_cap
from l2o.objective import metric_names
from l2o.rl.reward import BUILT_IN, LOG_FLOOR
from l2o.task import Task

RESAMPLES = 1000

Measured = Literal["train", "valid", "test"]


def check_objectives(objectives: Sequence[str], task: Task, on: Measured) -> None:
    """Raise a `ValueError` unless a task has at least two such objectives, all different."""
    metrics = metric_names(task) if on != "train" else ()
    for name in objectives:
        if name not in (*BUILT_IN, *metrics):
            raise ValueError(
                f"`objectives` must be {', '.join(BUILT_IN)} or a metric of task {task.name} on "
                f"valid or test; got {name}. Try {', '.join((*BUILT_IN, *metrics))}."
            )
    if len(set(objectives)) < max(2, len(objectives)):
        raise ValueError(
            f"`objectives` must be at least two that differ; got {' '.join(objectives) or 'none'}. "
            "Try log_loss examples."
        )


def costs(curves: Curves, task: Task, objectives: Sequence[str], on: Measured) -> np.ndarray:
    """Costs of the runs of one optimizer.

    Args:
        curves: Its runs.
        task: Task that they trained.
        objectives: "log_loss", the logarithm of the final loss; "loss", the mean training loss of
            all steps; "examples", the mean fraction of batches that counted, 1 of an optimizer that
            does not choose; or a metric, times -1 if it is one of `Task.maximized`.
        on: Split of the final loss and of metrics; "train" is the seed's fixed training batches.

    Returns:
        Shape (seeds, objectives); what has diverged counts as the task's caps.
    """
    ends = {"loss": curves.final_loss} if on == "train" else getattr(curves, on)
    counted = curves.fractions if curves.fractions.size else np.ones((len(curves.diverged), 1))
    steps = capped_losses(curves.train_loss, finite_cap(task))
    built_in = {
        "log_loss": lambda: np.log(np.maximum(ends["loss"], 0.0) + LOG_FLOOR),
        "loss": lambda: np.mean(steps, axis=1),
        "examples": lambda: np.mean(counted, axis=1),
    }

    def metric(name: str) -> np.ndarray:
        return -ends[name] if name in task.maximized else ends[name]

    found = [built_in[name]() if name in built_in else metric(name) for name in objectives]
    return np.stack([np.asarray(column, np.float64) for column in found], axis=1)


def not_dominated(points: np.ndarray) -> np.ndarray:
    """Tell which points none dominates, shape (points,); of equal ones the first.

    >>> not_dominated(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])).tolist()
    [True, True, False]
    """
    return np.asarray(moocore.is_nondominated(np.asarray(points, np.float64)), bool)


def hypervolumes(
    found: Mapping[str, np.ndarray], reference: Sequence[float] | None = None
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Compute the hypervolume of each front, and how much larger the first one's is.

    Args:
        found: Costs of each optimizer, shape (points, seeds, objectives), with equal seeds.
        reference: Cost of each objective at and above which a point counts for nothing; the worst
            mean cost of anybody if not given.

    Returns:
        Hypervolumes by name; and the first one's less each other's, by its name.

    Raises:
        ValueError: If a cost or the reference is not finite.
    """
    for name, values in {**found, "the reference": np.asarray(reference or (0.0,))}.items():
        if not np.all(np.isfinite(values)):
            raise ValueError(
                f"`reference` and costs must be finite; got others for {name}. Leave it out, or "
                "give the task a loss_cap and metric_caps."
            )
    means = np.concatenate([values.mean(axis=1) for values in found.values()])
    worst = means.max(axis=0) if reference is None else np.asarray(reference, np.float64)
    best = means.min(axis=0)
    if np.any(best > worst) or (reference is not None and np.any(best == worst)):
        nothing = Estimate(0.0, 0.0, 0.0)  # nobody is better than the reference in all objectives
        return dict.fromkeys(found, nothing), dict.fromkeys(list(found)[1:], nothing)
    size = np.where(worst > best, worst - best, 1.0)
    scaled = {name: (values - best) / size for name, values in found.items()}
    num_seeds = next(iter(found.values())).shape[1]
    draws = np.random.default_rng(0).integers(num_seeds, size=(RESAMPLES, num_seeds))
    ones = np.ones(len(worst))

    def volume(values: np.ndarray, seeds: np.ndarray) -> float:
        # The box stays, so what is better than its best corner in a resample counts as that.
        points = np.maximum(values[:, seeds].mean(axis=1), 0.0)
        return float(moocore.hypervolume(points, ref=ones))

    every = np.arange(num_seeds)
    whole = {name: volume(values, every) for name, values in scaled.items()}
    resampled = {n: np.array([volume(v, seeds) for seeds in draws]) for n, v in scaled.items()}

    def estimate(value: float, drawn: np.ndarray) -> Estimate:
        tail = (1.0 - CONFIDENCE) / 2.0
        low, high = (float(x) for x in np.quantile(drawn, [tail, 1.0 - tail]))
        return Estimate(value, min(low, value), max(high, value))

    volumes = {name: estimate(whole[name], resampled[name]) for name in found}
    first, *others = found
    gains = {
        name: estimate(whole[first] - whole[name], resampled[first] - resampled[name])
        for name in others
    }
    return volumes, gains


def preferences(num_objectives: int, number: int) -> np.ndarray:
    """Spread shares evenly over all that sum to 1.

    >>> preferences(2, 3).tolist()
    [[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]

    Args:
        num_objectives: Number of objectives, at least two.
        number: Number of shares of two objectives, at least 2; of more, one less is the number of
            parts that the whole is cut into.

    Returns:
        Shape (preferences, objectives).
    """
    parts = range(number)
    rows = [
        row for row in itertools.product(parts, repeat=num_objectives) if sum(row) == number - 1
    ]
    return np.array(rows, np.float64) / (number - 1)
