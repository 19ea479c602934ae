"""A comparison on one task: searches, then all recipes and policies on other seeds."""

import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from rich.console import Console

from l2o.evaluation.evaluate import Curves, draw_starts, evaluate, train_settings
from l2o.hpo.engines import ENGINES
from l2o.hpo.recipe import follow
from l2o.hpo.report import TaskResult
from l2o.hpo.search import Report, Search, Trainer, in_force, incumbents
from l2o.hpo.summary import Found, engine_result, policy_result, read_off
from l2o.hpo.trained_policy import Meta
from l2o.rng import stream
from l2o.runs.folder import RunError, atomic_write
from l2o.task import Key, Task

RECIPES_AT_ONCE = 64


@dataclass(frozen=True)
class Budget:
    """How much a comparison may cost; see `l2o compare-hpo --help`.

    Attributes:
        tasks: of a family that are reported on at most, the last of them being its last.
    """

    steps: int
    runs: int
    searches: int
    seeds: int
    inner_steps: float
    tasks: int | None = None

    @property
    def horizon(self) -> tuple[int, int]:
        """Inner steps of the shortest and the longest run of meta-training."""
        return SHORTEST, SHORTEST * max(1, math.ceil(1.5 * self.steps / SHORTEST))


SHORTEST = 300
"""Inner steps of the shortest run of meta-training, of which all are multiples."""


def compare_on(
    task: Task,
    engines: Sequence[str],
    policies: Sequence[Meta],
    budget: Budget,
    seed: int,
    folder: Path,
    console: Console,
) -> TaskResult:
    """Everybody on one task: searches on some seeds, then all recipes and policies on others."""
    k_search, k_report = jax.random.split(stream(seed, "evaluation"))
    searched = {
        name: search_all(name, task, k_search, budget, seed, folder / "searches", console)
        for name in engines
    }
    console.print(f"evaluating on {task.name}", soft_wrap=True, markup=False)
    spent = [budget.steps * (i + 1) for i in range(budget.runs)]
    judged = {name: [in_force(each, spent) for each in found] for name, found in searched.items()}
    recipes = [r.recipe for found in judged.values() for each in found for r in each]
    curves = iter(evaluate_recipes(recipes, task, k_report, budget))
    of_engines = []
    for name, found in judged.items():
        runs: list[Found] = [[(report, next(curves)) for report in each] for each in found]
        of_engines.append(read_off(name, runs, spent))
    optimizers = {
        str(i): lambda *, horizon, p=p: p.lopt.transform(p.theta, horizon=horizon)
        for i, p in enumerate(policies)
    }
    of_policies = evaluate(
        k_report,
        task,
        optimizers,
        horizon=budget.steps,
        num_seeds=budget.seeds,
        probe_every=budget.steps,
        allow_seen=True,  # and marked
    )
    return TaskResult(
        task=task.name,
        steps=budget.steps,
        budget=budget.steps * budget.runs,
        engines=[engine_result(searches) for searches in of_engines],
        policies=[
            policy_result(policy, task.name, of_policies[str(i)], budget.steps, of_engines)
            for i, policy in enumerate(policies)
        ],
    )


def search_all(
    name: str, task: Task, key: Key, budget: Budget, seed: int, folder: Path, console: Console
) -> list[list[Report]]:
    """The incumbents of every repetition of a search; those that a folder holds are read."""
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
            search = Search(Trainer(task, start, budget.steps), budget.steps * budget.runs)
            ENGINES[name].search(search, seed + i, folder)
            if not any(report.step == budget.steps for report in search.reports):
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
    """Writes reports, as a whole or not at all."""
    buffer = io.BytesIO()
    columns = {name: np.array([getattr(r, name) for r in reports]) for name in Report._fields}
    np.savez(buffer, allow_pickle=False, **columns)
    atomic_write(path, buffer.getvalue())


def load_reports(path: Path) -> list[Report]:
    """Reads what `save_reports` wrote.

    Raises:
        RunError: if it is damaged.
    """
    try:
        with open(path, "rb") as raw, np.load(raw) as file:
            columns = [file[name] for name in Report._fields]
        return [
            Report(int(spent), str(trial), int(step), float(loss), rows)
            for spent, trial, step, loss, rows in zip(*columns, strict=True)
        ]
    except Exception as error:  # NumPy and zipfile raise nearly everything
        raise RunError(
            f"{path} is damaged or of another version. Delete it, and go on with --resume."
        ) from error


def evaluate_recipes(
    recipes: Sequence[np.ndarray], task: Task, key: Key, budget: Budget
) -> list[Curves]:
    """Runs of each recipe on the reporting seeds."""
    starts = draw_starts(key, task, budget.seeds)
    curves: list[Curves] = []
    for i in range(0, len(recipes), RECIPES_AT_ONCE):
        curves += train_settings(
            task,
            follow,
            np.stack(recipes[i : i + RECIPES_AT_ONCE]),
            starts,
            horizon=budget.steps,
            probe_every=budget.steps,
        )
    return curves
