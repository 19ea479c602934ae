"""What engines and policies came to: curves over what was spent, and where they cross."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from l2o.evaluate import Curves
from l2o.hpo.policies import Meta
from l2o.hpo.search import Report
from l2o.statistics import Interval, median_interval

Found = Sequence[tuple[Report, Curves]]
"""The incumbents of one search, in order, each with its runs on the reporting seeds."""


@dataclass(frozen=True)
class EngineResult:
    """An engine on one task.

    Attributes:
        name: of the engine.
        spent: inner steps of a search.
        median: over searches, of the median over seeds of the final loss of the best recipe so
            far, for each of `spent`; NaN before all searches have one.
        low: lower quartile over searches.
        high: upper quartile.
        final_loss: the median at the end, with its 95 % interval over searches.
        diverged: fraction of the runs with the recipes at the end.
        test: mean over searches and seeds at the end, by metric.
    """

    name: str
    spent: Sequence[int]
    median: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    final_loss: Interval
    diverged: float
    test: Mapping[str, float]


@dataclass(frozen=True)
class Crossing:
    """From how many tasks on a policy takes fewer inner steps than an engine.

    Attributes:
        engine: which.
        spent: inner steps after which the engine's median is as low as the policy's; None if it
            never is within its budget.
        tasks: inner steps of meta-training over `spent`, rounded up; over the budget, and thereby
            an upper bound, if it never is. None if the cost of meta-training is unknown.
    """

    engine: str
    spent: int | None
    tasks: int | None


@dataclass(frozen=True)
class PolicyResult:
    """A policy on one task.

    Attributes:
        name: of the policy.
        is_seen: whether it was meta-trained on the task.
        inner_steps: of its meta-training; 0 before it.
        final_loss: median over seeds, with its 95 % interval.
        diverged: fraction of the runs.
        test: mean over seeds, by metric.
        crossings: with each engine.
    """

    name: str
    is_seen: bool
    inner_steps: int | None
    final_loss: Interval
    diverged: float
    test: Mapping[str, float]
    crossings: Sequence[Crossing]


def engine_result(name: str, searches: Sequence[Found], spent: Sequence[int]) -> EngineResult:
    """The searches of an engine, one for each repetition, read off after `spent` inner steps."""
    losses = np.array([[loss_after(found, s) for s in spent] for found in searches])
    low, median, high = np.quantile(losses, (0.25, 0.5, 0.75), axis=0)
    ends = [found[-1][1] for found in searches]
    return EngineResult(
        name=name,
        spent=list(spent),
        median=median.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        final_loss=median_interval(np.array([np.median(end.final_loss) for end in ends])),
        diverged=float(np.mean([end.diverged for end in ends])),
        test={k: float(np.mean([end.test[k] for end in ends])) for k in ends[0].test},
    )


def loss_after(found: Found, spent: int) -> float:
    """Median final loss of the best recipe after so many inner steps; NaN if there is none yet."""
    runs = [curves for report, curves in found if report.spent <= spent]
    return float(np.median(runs[-1].final_loss)) if runs else math.nan


def policy_result(
    policy: Meta, task: str, curves: Curves, engines: Sequence[EngineResult]
) -> PolicyResult:
    """A policy beside the engines."""
    loss = median_interval(curves.final_loss)
    return PolicyResult(
        name=policy.name,
        is_seen=task in policy.trained_on,
        inner_steps=policy.inner_steps,
        final_loss=loss,
        diverged=float(np.mean(curves.diverged)),
        test={k: float(np.mean(v)) for k, v in curves.test.items()},
        crossings=[crossing(loss.median, policy.inner_steps, engine) for engine in engines],
    )


def crossing(loss: float, inner_steps: int | None, engine: EngineResult) -> Crossing:
    """Where an engine becomes as good as a policy with this median loss."""
    reached = [s for s, median in zip(engine.spent, engine.median, strict=True) if median <= loss]
    spent = reached[0] if reached else None
    cost = spent or engine.spent[-1]
    return Crossing(
        engine=engine.name,
        spent=spent,
        tasks=None if inner_steps is None else math.ceil(inner_steps / cost),
    )
