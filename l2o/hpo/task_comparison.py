"""A comparison on one task: searches, then all schedules and policies on other seeds."""

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from l2o.evaluation.evaluate import evaluate
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Curves, train_settings
from l2o.hpo.engines import ENGINES
from l2o.hpo.report import TaskResult
from l2o.hpo.schedule import scheduled_sgd
from l2o.hpo.search import Report, Search, Trainer, incumbents, incumbents_after
from l2o.hpo.summary import collect_searches, engine_result, policy_result
from l2o.hpo.trained_policy import TrainedPolicy
from l2o.rng import stream
from l2o.runs.folder import RunError, atomic_write
from l2o.task import Key, Task

SCHEDULES_AT_ONCE = 64


@dataclass(frozen=True)
class Budget:
    """How much a comparison may cost; see `l2o compare-hpo --help`.

    Attributes:
        horizon: Inner steps of a run.
        runs: Number of whole runs that a search may spend on a task.
        searches: Number of repetitions of every search.
        seeds: Number of evaluation runs of each schedule and policy.
        inner_steps: Inner steps of the meta-training of each policy, about.
        tasks: Most tasks of a family that are reported on, the last of them being its last.
    """

    horizon: int
    runs: int
    searches: int
    seeds: int
    inner_steps: float
    tasks: int | None = None

    @property
    def meta_training_horizon(self) -> tuple[int, int]:
        """Inner steps of the shortest and the longest run of meta-training."""
        return SHORTEST, SHORTEST * max(1, math.ceil(1.5 * self.horizon / SHORTEST))


SHORTEST = 300
"""Inner steps of the shortest run of meta-training, of which all are multiples."""


def compare_on_task(
    task: Task,
    engines: Sequence[str],
    policies: Sequence[TrainedPolicy],
    budget: Budget,
    seed: int,
    folder: Path,
    console: Console,
) -> TaskResult:
    """Compare on one task: searches on some seeds, then all schedules and policies on others."""
    k_search, k_report = jax.random.split(stream(seed, "evaluation"))
    searched = {
        name: search_all(name, task, k_search, budget, seed, folder / "searches", console)
        for name in engines
    }
    console.print(f"evaluating on {task.name}", soft_wrap=True, markup=False)
    budgets = [budget.horizon * (i + 1) for i in range(budget.runs)]
    kept = {
        name: [incumbents_after(reports, budgets) for reports in searches]
        for name, searches in searched.items()
    }
    schedules = [r.schedule for searches in kept.values() for reports in searches for r in reports]
    curves = iter(evaluate_schedules(schedules, task, k_report, budget))
    engine_searches = [
        collect_searches(name, [[(r, next(curves)) for r in reports] for reports in each], budgets)
        for name, each in kept.items()
    ]
    optimizers = {
        str(i): lambda *, horizon, p=p: p.lopt.transform(p.theta, horizon=horizon)
        for i, p in enumerate(policies)
    }
    policy_curves = evaluate(
        k_report,
        task,
        optimizers,
        horizon=budget.horizon,
        num_seeds=budget.seeds,
        probe_every=budget.horizon,
    )
    return TaskResult(
        task=task.name,
        steps=budget.horizon,
        budget=budget.horizon * budget.runs,
        engines=[engine_result(searches) for searches in engine_searches],
        policies=[
            policy_result(policy, task, policy_curves[str(i)], budget.horizon, engine_searches)
            for i, policy in enumerate(policies)
        ],
    )


def search_all(
    name: str, task: Task, key: Key, budget: Budget, seed: int, folder: Path, console: Console
) -> list[list[Report]]:
    """Find the incumbents of every repetition of a search; those that a folder holds are read."""
    starts = draw_starts(key, task, budget.searches)
    folder = folder / task.name.replace(":", "_").replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    num_read, began = 0, time.perf_counter()
    for i in range(budget.searches):
        path = folder / f"{name}_{seed + i}.npz"
        if path.exists():
            num_read += 1
        else:
            start = jax.tree.map(lambda x, i=i: x[i], starts)
            search = Search(Trainer(task, start, budget.horizon), budget.horizon * budget.runs)
            ENGINES[name].search(search, seed + i, folder)
            if not any(report.step == budget.horizon for report in search.reports):
                raise RunError(f"{name} ended without a whole trial. Leave it out by --engines.")
            save_reports(path, incumbents(search.reports))
        found.append(load_reports(path))
    seconds = time.perf_counter() - began
    read = f" ({num_read} done before)" if num_read else ""
    console.print(
        f"{name} on {task.name}: {budget.searches} searches in {seconds:.0f} s{read}",
        highlight=False,
        soft_wrap=True,
    )
    return found


def save_reports(path: Path, reports: Sequence[Report]) -> None:
    """Write reports, as a whole or not at all."""
    buffer = io.BytesIO()
    columns = {name: np.array([getattr(r, name) for r in reports]) for name in Report._fields}
    np.savez(buffer, allow_pickle=False, **columns)
    atomic_write(path, buffer.getvalue())


def load_reports(path: Path) -> list[Report]:
    """Read what `save_reports` wrote.

    Raises:
        RunError: If the file is damaged.
    """
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            columns = [file[name] for name in Report._fields]
        return [
            Report(int(used), str(trial), int(step), float(loss), rows)
            for used, trial, step, loss, rows in zip(*columns, strict=True)
        ]
    except Exception as error:  # NumPy and zipfile raise nearly everything
        raise RunError(
            f"{path} is damaged or of another version. Delete it, and go on with --resume."
        ) from error


def evaluate_schedules(
    schedules: Sequence[np.ndarray], task: Task, key: Key, budget: Budget
) -> list[Curves]:
    """Train by each schedule on the reporting seeds."""
    starts = draw_starts(key, task, budget.seeds)
    curves: list[Curves] = []
    for i in range(0, len(schedules), SCHEDULES_AT_ONCE):
        curves += train_settings(
            task,
            scheduled_sgd,
            np.stack(schedules[i : i + SCHEDULES_AT_ONCE]),
            starts,
            horizon=budget.horizon,
            probe_every=budget.horizon,
        )
    return curves
