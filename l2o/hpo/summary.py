"""Results of engines and policies: curves over the budget used, and where they break even."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from l2o.evaluation.seen import is_seen
from l2o.evaluation.statistics import CONFIDENCE, Interval, median_interval
from l2o.evaluation.training import Curves
from l2o.hpo.search import Report
from l2o.hpo.trained_policy import TrainedPolicy
from l2o.task import Task

EvaluatedIncumbents = Sequence[tuple[Report, Curves]]
"""The incumbents of one search, in order, each with its runs on the reporting seeds."""

RESAMPLES = 2000

TAILS = 50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)
"""Percentiles at the ends of an interval."""


@dataclass(frozen=True, eq=False)
class Searches:
    """All searches of an engine on one task.

    Attributes:
        name: Name of the engine.
        budget_used: Inner steps of a search, increasing, after which results are read.
        losses: Final losses on the reporting seeds of the best schedule so far, shape (searches,
            budgets, seeds); NaN where there is none yet.
        kept_losses: Loss of the best trial so far on the problem that was searched on, which is the
            model that a user keeps; shape (searches, budgets), NaN likewise.
        steps_to_finish: Inner steps that the best trial so far is short of its end; those of a
            whole run where there is no trial yet; shape (searches, budgets).
        final_runs: For every search, the runs with its last schedule.
    """

    name: str
    budget_used: Sequence[int]
    losses: np.ndarray
    kept_losses: np.ndarray
    steps_to_finish: np.ndarray
    final_runs: Sequence[Curves]


@dataclass(frozen=True)
class EngineResult:
    """An engine on one task.

    Attributes:
        name: Name of the engine.
        budget_used: Inner steps of a search.
        median: Median over searches of the median over seeds of the final loss of the best schedule
            so far, for each `budget_used`; NaN before all searches have one.
        low: Lower quartile over searches.
        high: Upper quartile over searches.
        final_loss: Median at the end, with its 95 % interval over searches and seeds.
        diverged: Fraction of the runs with the schedules at the end that diverged.
        test: Mean over searches and seeds at the end, by metric.
    """

    name: str
    budget_used: Sequence[int]
    median: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    final_loss: Interval
    diverged: float
    test: Mapping[str, float]


class Bound(NamedTuple):
    """From how many tasks on a policy costs less than an engine.

    Attributes:
        budget_used: Inner steps from which on the engine is as good as the policy; None if it is
            not within its budget.
        tasks: Cost of meta-training over what each task saves, rounded up; None if no number of
            tasks is enough. An upper bound where `budget_used` is None.
    """

    budget_used: int | None
    tasks: int | None


@dataclass(frozen=True)
class BreakEven:
    """Where a policy and an engine break even.

    Attributes:
        engine: Name of the engine.
        middle: Bound by the medians.
        early: Bound where the engine is as good early, at the lower end of the 95 % interval over
            searches and seeds.
        late: Bound at the upper end.
    """

    engine: str
    middle: Bound
    early: Bound
    late: Bound


@dataclass(frozen=True)
class PolicyResult:
    """A policy on one task.

    Attributes:
        name: Name of the policy.
        is_seen: Whether it was meta-trained on the task.
        inner_steps: Inner steps of its meta-training; 0 before it, None if unknown.
        final_loss: Median over seeds, with its 95 % interval.
        diverged: Fraction of the runs that diverged.
        test: Mean over seeds, by metric.
        break_even: Where it breaks even with each engine; empty if it has cost nothing, or nobody
            knows what.
    """

    name: str
    is_seen: bool
    inner_steps: int | None
    final_loss: Interval
    diverged: float
    test: Mapping[str, float]
    break_even: Sequence[BreakEven]


def collect_searches(
    name: str, searches: Sequence[EvaluatedIncumbents], budgets: Sequence[int]
) -> Searches:
    """Collect what the searches of an engine have found after each of some budgets."""
    return Searches(
        name=name,
        budget_used=list(budgets),
        losses=np.array([[losses_after(found, b) for b in budgets] for found in searches]),
        kept_losses=np.array([[kept_loss_after(found, b) for b in budgets] for found in searches]),
        steps_to_finish=np.array(
            [[steps_to_finish_after(found, b) for b in budgets] for found in searches]
        ),
        final_runs=[found[-1][1] for found in searches],
    )


def losses_after(found: EvaluatedIncumbents, budget: int) -> np.ndarray:
    """Final losses of the best schedule after a budget, shape (seeds,); NaN before there is one."""
    runs = [curves.final_loss for report, curves in found if report.budget_used <= budget]
    return runs[-1] if runs else np.full_like(found[0][1].final_loss, np.nan)


def kept_loss_after(found: EvaluatedIncumbents, budget: int) -> float:
    """Loss of the best trial after a budget on its own problem; NaN before there is one."""
    losses = [report.loss for report, _ in found if report.budget_used <= budget]
    return losses[-1] if losses else math.nan


def steps_to_finish_after(found: EvaluatedIncumbents, budget: int) -> int:
    """Inner steps that the best trial is short of its end after a budget."""
    done = [report.step for report, _ in found if report.budget_used <= budget]
    return len(found[0][0].schedule) - (done[-1] if done else 0)


def engine_result(searches: Searches) -> EngineResult:
    """Summarize an engine's searches."""
    low, median, high = np.quantile(np.median(searches.losses, axis=2), (0.25, 0.5, 0.75), axis=0)
    curves = resampled(searches)
    final_runs = searches.final_runs
    return EngineResult(
        name=searches.name,
        budget_used=searches.budget_used,
        median=median.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        final_loss=Interval(float(median[-1]), *map(float, np.percentile(curves[:, -1], TAILS))),
        diverged=float(np.mean([runs.diverged for runs in final_runs])),
        test={k: float(np.mean([runs.test[k] for runs in final_runs])) for k in final_runs[0].test},
    )


def policy_result(
    policy: TrainedPolicy, task: Task, curves: Curves, horizon: int, engines: Sequence[Searches]
) -> PolicyResult:
    """Summarize a policy's runs of `horizon` steps beside the engines."""
    cost = policy.inner_steps
    return PolicyResult(
        name=policy.name,
        is_seen=is_seen(task, frozenset(policy.trained_on)),
        inner_steps=cost,
        final_loss=median_interval(curves.final_loss),
        diverged=float(np.mean(curves.diverged)),
        test={k: float(np.mean(v)) for k, v in curves.test.items()},
        break_even=[break_even(curves.final_loss, cost, horizon, e) for e in engines]
        if cost
        else [],
    )


def break_even(losses: np.ndarray, cost: int, horizon: int, engine: Searches) -> BreakEven:
    """Find where a policy and an engine break even.

    After S inner steps of search and the R that its best trial is short of its end, on average over
    searches, there is a trained model, the best trial; with the policy after a run of T steps. On N
    tasks the engine has cost N (S + R) and the policy M + N T. The engine is as good as the policy
    by the loss of the model that it keeps, in the median over searches.

    Args:
        losses: Final losses of the policy on the seeds, shape (seeds,).
        cost: Inner steps M of its meta-training.
        horizon: Inner steps T of a run.
        engine: Searches of the engine.
    """
    budgets = np.array(engine.budget_used)
    middle = as_good_from(budgets, np.median(engine.kept_losses, axis=0), float(np.median(losses)))
    rng, num_searches = np.random.default_rng(0), len(engine.kept_losses)
    searches = rng.integers(num_searches, size=(RESAMPLES, num_searches))
    seeds = rng.integers(losses.size, size=(RESAMPLES, losses.size))
    curves = np.median(engine.kept_losses[searches], axis=1)
    targets = np.median(losses[seeds], axis=1)
    drawn = [as_good_from(budgets, c, t) for c, t in zip(curves, targets, strict=True)]
    early, late = np.percentile(drawn, TAILS, method="inverted_cdf")
    steps_to_finish = np.mean(engine.steps_to_finish, axis=0)

    def bound(budget: float) -> Bound:
        at = min(budget, budgets[-1])
        saved = at + steps_to_finish[np.searchsorted(budgets, at)] - horizon
        tasks = math.ceil(cost / saved) if saved > 0 else None
        return Bound(int(budget) if math.isfinite(budget) else None, tasks)

    return BreakEven(engine.name, bound(middle), bound(early), bound(late))


def as_good_from(budgets: np.ndarray, losses: np.ndarray, target: float) -> float:
    """Budget from which on, to its end, a curve is at or below a target; `inf` if there is none."""
    above = np.flatnonzero(~(losses <= target))
    first = above[-1] + 1 if above.size else 0
    return float(budgets[first]) if first < len(budgets) else math.inf


def resampled(searches: Searches) -> np.ndarray:
    """Draw bootstrap resamples over searches and seeds.

    Returns:
        The median over searches of the median over seeds, shape (RESAMPLES, budgets).
    """
    rng = np.random.default_rng(0)
    num_searches, num_budgets, num_seeds = searches.losses.shape
    curves = np.empty((RESAMPLES, num_budgets))
    for i in range(RESAMPLES):
        seeds = rng.integers(num_seeds, size=num_seeds)
        rows = rng.integers(num_searches, size=num_searches)
        search_medians = np.median(searches.losses[:, :, seeds], axis=2)
        curves[i] = np.median(search_medians[rows], axis=0)
    return curves
