"""What the results of a suite add up to, ready for JSON.

Targets are the reference's final losses on the same seed, but no less than what counts as solved. A
run that never gets to a target has infinite steps and a speed-up of 0; none is dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from l2o.evaluation import aggregates
from l2o.evaluation.compare import interval_or_nan, quartiles
from l2o.evaluation.scores import loss_scores
from l2o.evaluation.statistics import Estimate, median_interval, steps_to
from l2o.evaluation.transfer import TransferMatrix, TransferResult, transfer_matrix
from l2o.suite.entrant import Entrant
from l2o.suite.result import Result, Runs
from l2o.suite.suite_task import SuiteTask

LOSSES = ("train", "valid")
"""What optimizers are compared by: training loss and validation loss."""

THRESHOLDS = np.linspace(0.0, 1.0, 51)
"""Scores at which performance profiles are drawn."""

RATIOS = np.geomspace(1.0, 20.0, 41)
"""Ratios of steps at which their profiles are drawn."""

HIGHEST_FLOOR = 0.999
"""Largest fraction of the first loss that counts as solved, where a run starts about there."""


class Figures(NamedTuple):
    """One optimizer beside the reference on one task, each of shape (seeds,).

    Attributes:
        ratio: Final loss over the reference's, both at least what is solved.
        steps: Steps to the reference's final loss; infinite where it is never reached.
        speedup: The reference's own steps to it over these; 0 where it is never reached.
        speedup_seconds: The same in time, with the costs of a step measured beside SGD's.
        score: 1 where solved, 0 at the first loss or where the run diverged, logarithmic between.
    """

    ratio: np.ndarray
    steps: np.ndarray
    speedup: np.ndarray
    speedup_seconds: np.ndarray
    score: np.ndarray


def steps_reaching(result: Result, goals: np.ndarray, losses: str) -> np.ndarray:
    """Steps to a loss on each seed.

    To a training loss they are those of the setting that was first there on tuning seeds, or of the
    best where that never gets there; to a validation loss those of the best setting.

    Args:
        result: What an optimizer did.
        goals: Loss to reach, shape (seeds,).
        losses: Which loss.
    """

    def reached(runs: Runs) -> np.ndarray:
        return steps_to(runs.steps, getattr(runs, losses), goals)

    best, fast = reached(result.best), reached(result.fastest)
    return np.where(np.isfinite(fast), fast, best) if losses == "train" else best


def figures(result: Result, reference: Result, solved: float, losses: str) -> Figures:
    """Compute what one optimizer did beside the reference, by one of the two losses."""
    own, theirs = (getattr(r.best, losses) for r in (result, reference))
    goals = np.maximum(theirs[:, -1], solved)
    steps, steps_of_reference = (steps_reaching(r, goals, losses) for r in (result, reference))
    speedup = steps_of_reference / steps
    first = own[:, 0]
    score = loss_scores(
        own[:, -1:],
        first[:, None],
        floor=np.minimum(solved / first, HIGHEST_FLOOR)[:, None],
    )[:, 0]
    return Figures(
        ratio=np.maximum(own[:, -1], solved) / goals,
        steps=steps,
        speedup=speedup,
        speedup_seconds=speedup * reference.relative_cost / result.relative_cost,
        score=np.select([result.best.diverged, own[:, -1] <= solved], [0.0, 1.0], score),
    )


def summarise(
    suite: Sequence[SuiteTask],
    results: Sequence[Result],
    reference: str,
    entrants: Sequence[Entrant],
) -> dict[str, Any]:
    """Sum up the results of a suite.

    Args:
        suite: Tasks, in the order of the report.
        results: What each optimizer did on each of them; tasks without a result of every optimizer
            have rows but no part in aggregates.
        reference: Name of the optimizer whose final losses are the targets.
        entrants: Who took part, the reference included, in the order of the report.

    Returns:
        "reference", "entrants", "rows" (one a task), "aggregates" (one an optimizer), "profiles",
        and "transfer", which is None unless there are learned optimizers.
    """
    by_task: dict[str, dict[str, Result]] = {}
    for result in results:
        by_task.setdefault(result.task, {})[result.entrant] = result
    entries = [entry for entry in suite if reference in by_task.get(entry.name, {})]
    names = [entrant.name for entrant in entrants]
    found = {
        entry.name: {
            name: {
                losses: figures(result, by_task[entry.name][reference], entry.solved, losses)
                for losses in LOSSES
            }
            for name, result in by_task[entry.name].items()
        }
        for entry in entries
    }
    whole = [entry.name for entry in entries if set(names) <= set(found[entry.name])]

    def table(name: str, losses: str, what: str) -> np.ndarray:
        """One of the figures of an optimizer, shape (seeds, tasks)."""
        columns = [getattr(found[task][name][losses], what) for task in whole]
        return np.stack(columns, axis=1)

    scores = {n: {k: table(n, k, "score") for k in LOSSES} for n in names} if whole else {}
    return {
        "reference": reference,
        "entrants": [
            {
                "name": entrant.name,
                "description": entrant.baseline.description,
                "is_learned": entrant.is_learned,
                "families": list(entrant.families),
                "says_what_it_has_seen": bool(entrant.seen),
            }
            for entrant in entrants
        ],
        "rows": [
            {
                "task": entry.name,
                "kind": entry.kind,
                "axis": entry.axis,
                "horizon": entry.horizon,
                "solved": entry.solved,
                "num_parameters": by_task[entry.name][reference].num_parameters,
                "results": {
                    name: row(by_task[entry.name][name], found[entry.name][name])
                    for name in names
                    if name in found[entry.name]
                },
            }
            for entry in entries
        ],
        "aggregated_tasks": whole,
        "aggregates": {
            name: aggregate(scores[name], scores[reference], table, name) for name in scores
        },
        "profiles": profiles(scores, table, names) if whole else None,
        "transfer": transfer(suite, found, whole, entrants),
    }


def row(result: Result, beside: Mapping[str, Figures]) -> dict[str, Any]:
    """The figures of one optimizer on one task: medians with intervals, and values by seed."""
    best = result.best

    def by_loss(losses: str) -> dict[str, Any]:
        found, curves = beside[losses], getattr(best, losses)
        return {
            "final": median_interval(curves[:, -1])._asdict(),
            "ratio": median_interval(found.ratio)._asdict(),
            "speedup": median_interval(found.speedup)._asdict(),
            "speedup_seconds": median_interval(found.speedup_seconds)._asdict(),
            "reached": float(np.mean(np.isfinite(found.steps))),
            "by_seed": curves[:, -1].tolist(),
            "steps_by_seed": found.steps.tolist(),
            "score": float(np.mean(found.score)),
            "failed": float(np.mean(found.score <= 0.0)),
            "curve": quartiles(curves, axis=0),
        }

    return {
        **{losses: by_loss(losses) for losses in LOSSES},
        "steps": best.steps.tolist(),
        "test": {k: interval_or_nan(v)._asdict() for k, v in best.test_end.items()},
        "diverged": float(np.mean(best.diverged)),
        "is_seen": result.is_seen,
        "is_tuned": result.is_tuned,
        "at_grid_edge": result.at_grid_edge,
        "num_settings": result.num_settings,
        "setting": dict(result.setting),
        "fastest_setting": dict(result.fastest_setting),
        "seconds_per_step": result.seconds_per_step,
        "relative_cost": result.relative_cost,
        "state_per_parameter": result.state_per_parameter,
        "seconds": result.seconds,
    }


def aggregate(
    scores: Mapping[str, np.ndarray], rival: Mapping[str, np.ndarray], table: Any, name: str
) -> dict[str, Any]:
    """Sum up one optimizer over all tasks, with intervals over seeds."""

    def of(losses: str) -> dict[str, Any]:
        own = scores[losses]
        wins = aggregates.stratified_bootstrap(
            [own, rival[losses]], aggregates.probability_of_improvement
        )
        iqm = aggregates.stratified_bootstrap(own, aggregates.interquartile_mean)
        speedup = table(name, losses, "speedup")
        return {
            "interquartile_mean": iqm._asdict(),
            "mean": float(aggregates.mean(own)),
            "probability_of_improvement": wins._asdict(),
            "failed": float(np.mean(own <= 0.0)),
            "solved": float(np.mean(own >= 1.0)),
            "reached": float(np.mean(speedup > 0.0)),
            "median_speedup": float(np.median(np.median(speedup, axis=0))),
            "median_speedup_seconds": float(
                np.median(np.median(table(name, losses, "speedup_seconds"), axis=0))
            ),
        }

    return {losses: of(losses) for losses in LOSSES}


def profiles(
    scores: Mapping[str, Mapping[str, np.ndarray]], table: Any, names: Sequence[str]
) -> dict[str, Any]:
    """Profiles of scores, with bands over seeds, and of steps to the targets."""

    def of_scores(losses: str) -> dict[str, Any]:
        return {
            name: aggregates.stratified_bootstrap(
                scores[name][losses],
                lambda x: aggregates.performance_profile(x, THRESHOLDS),
                num_resamples=500,
            )._asdict()
            for name in names
        }

    def of_steps(losses: str) -> dict[str, Any]:
        steps = np.stack([table(name, losses, "steps") for name in names])
        found = aggregates.step_ratio_profile(steps, RATIOS)
        return {name: found[i].tolist() for i, name in enumerate(names)}

    return {
        "thresholds": THRESHOLDS.tolist(),
        "ratios": RATIOS.tolist(),
        "scores": {losses: of_scores(losses) for losses in LOSSES},
        "steps": {losses: of_steps(losses) for losses in LOSSES},
    }


def transfer(
    suite: Sequence[SuiteTask],
    found: Mapping[str, Mapping[str, Mapping[str, Figures]]],
    whole: Sequence[str],
    entrants: Sequence[Entrant],
) -> dict[str, Any] | None:
    """Mean validation score of each learned optimizer, by its families, on each kind of task."""
    learned = [entrant for entrant in entrants if entrant.is_learned]
    kinds = dict.fromkeys(entry.kind for entry in suite if entry.name in whole)
    if not learned or not kinds:
        return None
    rows = [
        TransferResult(
            entrant.name,
            " + ".join(entrant.families) or entrant.name,
            kind,
            np.stack(
                [
                    found[entry.name][entrant.name]["valid"].score
                    for entry in suite
                    if entry.kind == kind and entry.name in whole
                ],
                axis=1,
            ),
        )
        for entrant in learned
        for kind in kinds
    ]
    matrix = transfer_matrix(rows, aggregates.mean)
    return {
        "trained_on": list(matrix.trained_on),
        "tested_on": list(matrix.tested_on),
        "estimate": matrix.estimate._asdict(),
        "num_optimizers": matrix.num_optimizers,
    }


def read_matrix(content: Mapping[str, Any]) -> TransferMatrix:
    """The table of trained on by tested on from the report's JSON."""
    values = [np.array(content["estimate"][k], np.float64) for k in ("value", "low", "high")]
    return TransferMatrix(
        tuple(content["trained_on"]),
        tuple(content["tested_on"]),
        Estimate(*values),
        np.array(content["num_optimizers"]),
    )
