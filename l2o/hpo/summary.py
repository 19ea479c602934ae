"""What engines and policies came to: curves over what was spent, and where they cross."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from l2o.evaluation.evaluate import Curves
from l2o.evaluation.statistics import CONFIDENCE, Interval, median_interval
from l2o.hpo.search import Report
from l2o.hpo.trained_policy import Meta

Found = Sequence[tuple[Report, Curves]]
"""The incumbents of one search, in order, each with its runs on the reporting seeds."""

RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Searches:
    """All searches of an engine on one task.

    Attributes:
        name: of the engine.
        spent: inner steps of a search, increasing, after which it is read off.
        losses: final losses of the best recipe so far, shape (searches, spent, seeds); NaN where
            there is none yet.
        rest: inner steps that the best trial so far is short of its end, where there is a model;
            those of a run where there is no trial yet; shape (searches, spent).
        ends: of every search, the runs with its last recipe.
    """

    name: str
    spent: Sequence[int]
    losses: np.ndarray
    rest: np.ndarray
    ends: Sequence[Curves]


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
        final_loss: the median at the end; its 95 % interval is over searches and seeds.
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


class Bound(NamedTuple):
    """From how many tasks on a policy has cost less than an engine.

    Attributes:
        spent: inner steps from which on the engine is as good as the policy; None if it is not
            within its budget.
        tasks: meta-training over what each task saves, rounded up; None if no number is enough. An
            upper bound where `spent` is None.
    """

    spent: int | None
    tasks: int | None


@dataclass(frozen=True)
class Crossing:
    """Where a policy crosses an engine.

    Attributes:
        engine: which.
        middle: by the medians.
        early: where the engine is as good early, at the lower end of the 95 % interval over
            searches and seeds.
        late: at the upper end.
    """

    engine: str
    middle: Bound
    early: Bound
    late: Bound


@dataclass(frozen=True)
class PolicyResult:
    """A policy on one task.

    Attributes:
        name: of the policy.
        is_seen: whether it was meta-trained on the task.
        inner_steps: of its meta-training; 0 before it, None if unknown.
        final_loss: median over seeds, with its 95 % interval.
        diverged: fraction of the runs.
        test: mean over seeds, by metric.
        crossings: with each engine; none if it has not, or nobody knows what it has cost.
    """

    name: str
    is_seen: bool
    inner_steps: int | None
    final_loss: Interval
    diverged: float
    test: Mapping[str, float]
    crossings: Sequence[Crossing]


def read_off(name: str, searches: Sequence[Found], spent: Sequence[int]) -> Searches:
    """What the searches of an engine have found after `spent` inner steps."""
    return Searches(
        name=name,
        spent=list(spent),
        losses=np.array([[losses_after(found, s) for s in spent] for found in searches]),
        rest=np.array([[rest_after(found, s) for s in spent] for found in searches]),
        ends=[found[-1][1] for found in searches],
    )


def losses_after(found: Found, spent: int) -> np.ndarray:
    """Final losses of the best recipe after so many inner steps, shape (seeds,); NaN before one."""
    runs = [curves.final_loss for report, curves in found if report.spent <= spent]
    return runs[-1] if runs else np.full_like(found[0][1].final_loss, np.nan)


def rest_after(found: Found, spent: int) -> int:
    """Inner steps that the best trial is short of its end after so many of a search."""
    done = [report.step for report, _ in found if report.spent <= spent]
    return len(found[0][0].recipe) - (done[-1] if done else 0)


def engine_result(searches: Searches) -> EngineResult:
    """An engine's searches in figures."""
    of_searches = np.median(searches.losses, axis=2)
    low, median, high = np.quantile(of_searches, (0.25, 0.5, 0.75), axis=0)
    curves, _ = resampled(searches, np.zeros(searches.losses.shape[2]))
    tail = 50 * (1 - CONFIDENCE)
    ends = searches.ends
    return EngineResult(
        name=searches.name,
        spent=searches.spent,
        median=median.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        final_loss=Interval(
            float(median[-1]), *map(float, np.percentile(curves[:, -1], (tail, 100 - tail)))
        ),
        diverged=float(np.mean([end.diverged for end in ends])),
        test={k: float(np.mean([end.test[k] for end in ends])) for k in ends[0].test},
    )


def policy_result(
    policy: Meta, task: str, curves: Curves, num_steps: int, engines: Sequence[Searches]
) -> PolicyResult:
    """A policy beside the engines, on runs of `num_steps` steps."""
    cost = policy.inner_steps
    return PolicyResult(
        name=policy.name,
        is_seen=task in policy.trained_on,
        inner_steps=cost,
        final_loss=median_interval(curves.final_loss),
        diverged=float(np.mean(curves.diverged)),
        test={k: float(np.mean(v)) for k, v in curves.test.items()},
        crossings=[crossing(curves.final_loss, cost, num_steps, e) for e in engines]
        if cost
        else [],
    )


def crossing(losses: np.ndarray, cost: int, num_steps: int, engine: Searches) -> Crossing:
    """Where a policy crosses an engine.

    After S inner steps of search and the R that its best trial is short of its end, on average over
    searches, there is a trained model; of the policy after a run of T steps. On N tasks the engine
    has cost N (S + R) and the policy M + N T.

    Args:
        losses: of the policy on the seeds, shape (seeds,).
        cost: M, inner steps of its meta-training.
        num_steps: T.
        engine: its searches.
    """
    curves, of_policy = resampled(engine, losses)
    middle = np.median(np.median(engine.losses, axis=2), axis=0)
    spent = np.array(engine.spent)
    tail = 50 * (1 - CONFIDENCE)
    drawn = [reach(spent, c, loss) for c, loss in zip(curves, of_policy, strict=True)]
    early, late = np.percentile(drawn, (tail, 100 - tail), method="inverted_cdf")

    rest = np.mean(engine.rest, axis=0)

    def bound(reached: float) -> Bound:
        at = min(reached, spent[-1])
        saved = at + rest[np.searchsorted(spent, at)] - num_steps
        tasks = math.ceil(cost / saved) if saved > 0 else None
        return Bound(int(reached) if math.isfinite(reached) else None, tasks)

    found = reach(spent, middle, float(np.median(losses)))
    return Crossing(engine.name, bound(found), bound(early), bound(late))


def reach(spent: np.ndarray, losses: np.ndarray, target: float) -> float:
    """From where on a curve is at or below the target, to its end; `inf` if it does not end so."""
    above = np.flatnonzero(~(losses <= target))
    first = above[-1] + 1 if above.size else 0
    return float(spent[first]) if first < len(spent) else math.inf


def resampled(searches: Searches, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bootstrap resamples over searches and seeds, the same seeds for the engine and the policy.

    Returns:
        Of the engine the median over searches of the median over seeds, shape (RESAMPLES, spent);
        of the policy's `losses` the median, shape (RESAMPLES,).
    """
    rng = np.random.default_rng(0)
    num_searches, _, num_seeds = searches.losses.shape
    curves = np.empty((RESAMPLES, len(searches.spent)))
    of_policy = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        seeds = rng.integers(num_seeds, size=num_seeds)
        rows = rng.integers(num_searches, size=num_searches)
        of_searches = np.median(searches.losses[:, :, seeds], axis=2)
        curves[i] = np.median(of_searches[rows], axis=0)
        of_policy[i] = np.median(losses[seeds])
    return curves, of_policy
