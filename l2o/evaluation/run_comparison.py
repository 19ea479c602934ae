"""Runs side by side, from the files in their folders: settings, curves, cost and evaluations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from l2o.evaluation.report import read_report
from l2o.evaluation.statistics import Estimate, mean_interval
from l2o.evaluation.validation import best_row, read_rows
from l2o.runs.folder import RunFolder, flatten
from l2o.runs.logging import read_metrics

LAST_SHARE = 10
"""The meta-loss at the end is the mean of one of so many parts of the lines."""


class Run(NamedTuple):
    """What is known of a run.

    Attributes:
        name: Name in tables and figures.
        path: Path of its folder.
        settings: Its configuration, nested fields named `a.b`.
        metrics: Lines of its `metrics.jsonl`.
        validation: Lines of its `validation.jsonl`.
        evaluations: Rows of its `report.json`, by task; empty if it has not been evaluated.
        evaluation_seed: Seed by which the runs of the evaluation were drawn.
    """

    name: str
    path: Path
    settings: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    validation: Sequence[Mapping[str, Any]]
    evaluations: Mapping[str, Mapping[str, Any]]
    evaluation_seed: int | None


def read_run(name: str, path: Path) -> Run:
    """Read a run from its folder.

    Raises:
        ValueError: If it is no run folder, or its report is damaged.
        RunError: If a line of its metrics is damaged.
    """
    run = RunFolder(path)
    try:
        settings = json.loads(run.config.read_bytes())
        if not isinstance(settings, dict) or "method" not in settings:
            raise ValueError("it is not of a run")
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        searched = path / "trials" if (path / "trials").is_dir() else path.parent
        hint = f"{searched}/*/" if searched.name == "trials" else "runs/digits"
        raise ValueError(
            f"`RUN` must be a folder of l2o meta-train; got {path} (config.json: {reason}). "
            f"Try {hint}."
        ) from error
    report = read_report(path) if run.report_json.is_file() else {"comparisons": [], "config": {}}
    return Run(
        name=name,
        path=path,
        settings=flatten(settings),
        metrics=read_metrics(run.metrics) if run.metrics.exists() else [],
        validation=read_rows(run.validation),
        evaluations={row["task"]: row for row in report["comparisons"]},
        evaluation_seed=report["config"].get("seed"),
    )


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings in which runs differ: the value of each run, "" where it has none."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    found = {name: [run.settings.get(name, "") for run in runs] for name in names}
    return {name: values for name, values in found.items() if len(set(map(repr, values))) > 1}


def totals(run: Run) -> dict[str, Any]:
    """How far a run has come, what that took, and how good theta is.

    Returns:
        "step" and "steps" that it is for, "inner_steps", "seconds" without compilation,
        "meta_loss" (mean of the last tenth of the lines), "score" (the best validation score) and
        its "score_step"; None where there is none.
    """
    last = run.metrics[-1] if run.metrics else {}
    end = run.metrics[-max(1, len(run.metrics) // LAST_SHARE) :]
    losses = [line["meta_loss"] for line in end if line.get("meta_loss") is not None]
    best = best_row(run.validation) or {}
    return {
        "step": last.get("step", 0),
        "steps": run.settings.get("steps"),
        "inner_steps": last.get("inner_steps", 0),
        "seconds": sum(line.get("seconds") or 0.0 for line in run.metrics),
        "meta_loss": float(np.mean(losses)) if losses else None,
        "score": best.get("score"),
        "score_step": best.get("step"),
    }


def common_tasks(runs: Sequence[Run]) -> list[str]:
    """Tasks that two runs or more have been evaluated on."""
    names = dict.fromkeys(name for run in runs for name in run.evaluations)
    return [name for name in names if sum(name in run.evaluations for run in runs) > 1]


def behind_first(runs: Sequence[Run], task: str) -> dict[str, Estimate]:
    """Geometric mean of each run's final loss over that of the first, seed by seed.

    Args:
        runs: Runs; the first that was evaluated on the task is the one that others are compared to.
        task: Name of the task.

    Returns:
        Ratios with their intervals, by name of the run; none of a run that was evaluated on other
        starts (another seed, horizon or number of seeds), or if a loss is not positive.
    """
    first, *others = (run for run in runs if task in run.evaluations)
    found = {}
    for run in others:
        ours, theirs = run.evaluations[task], first.evaluations[task]
        is_same = all(ours[name] == theirs[name] for name in ("steps", "num_seeds"))
        if not is_same or run.evaluation_seed != first.evaluation_seed:
            continue
        losses = np.array([row["learned_final_loss_by_seed"] for row in (ours, theirs)], np.float64)
        if np.all(losses > 0):
            ratios = mean_interval(np.log(losses[0] / losses[1]))
            found[run.name] = Estimate(*np.exp(ratios).tolist())
    return found
