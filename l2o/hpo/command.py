"""The whole path of `l2o compare-hpo`: meta-train policies, search, evaluate, write."""

import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from rich.console import Console

from l2o import lookup
from l2o.evaluate import Curves, draw_starts, evaluate, train_settings
from l2o.hpo.engines import ENGINES, INSTALL, check_engines
from l2o.hpo.policies import Meta, check_ways, released_policy, settings_of, train_policy
from l2o.hpo.recipe import follow
from l2o.hpo.report import NOTE, TaskResult, crossing_table, loss_table, write_results
from l2o.hpo.search import Report, Search, Trainer, incumbents
from l2o.hpo.summary import Found, engine_result, policy_result
from l2o.planning.plan import theta_key
from l2o.run_folder import RunFolder, atomic_write
from l2o.streams import check_seed, stream
from l2o.task import Key, Task

BudgetName = Literal["small", "medium", "large"]

RECIPES_AT_ONCE = 64


@dataclass(frozen=True)
class CompareHPO:
    """Compares learning-rate policies with engines for hyperparameter optimization."""

    # What is compared, on what
    task: tuple[str, ...] = ("digits_mlp",)
    """Families, their evaluation tasks, or module:attribute of your own."""
    engines: tuple[str, ...] = ()
    """cosine, random, optuna_tpe, optuna_cmaes, hyperopt_tpe, ray_pbt; those installed if not
    given."""
    policies: tuple[str, ...] = ("ppo", "nres", "CMA_ES")
    """Ways to meta-train a policy for this comparison, at equal inner steps; may be none."""
    released: tuple[str, ...] = ()
    """Run folders or release files of policies and other learned optimizers, besides."""

    # How much
    budget: BudgetName = "small"
    """small: two tasks at most, minutes; medium: hours; large: a day. It sets what follows."""
    steps: int | None = None
    """Inner steps of a run."""
    runs: int | None = None
    """Whole runs that a search may spend on a task."""
    searches: int | None = None
    """Repetitions of every search, each on a training problem of its own."""
    seeds: int | None = None
    """Evaluation runs of each recipe and policy."""
    inner_steps: float | None = None
    """Of the meta-training of each policy, about."""
    seed: int = 0
    """Of everything random."""

    # Where it goes
    out: str = "runs/hpo"
    """Folder for hpo.json, hpo.png, the searches and the runs of policies."""
    resume: bool = False
    """Continue the comparison in that folder."""


@dataclass(frozen=True)
class Budget:
    """What a name stands for; see `CompareHPO`.

    Attributes:
        horizon: shortest and longest run of meta-training.
        tasks: how many are reported on at most, the last of them being the family's last.
    """

    steps: int
    runs: int
    searches: int
    seeds: int
    inner_steps: float
    horizon: tuple[int, int]
    tasks: int | None = None


BUDGETS: Mapping[BudgetName, Budget] = {
    "small": Budget(400, 16, 3, 8, 1.5e6, (300, 600), tasks=2),
    "medium": Budget(1000, 48, 8, 16, 1e7, (300, 1500)),
    "large": Budget(1000, 128, 16, 32, 1e8, (300, 1500)),
}


def run_comparison(options: CompareHPO, console: Console) -> int:
    """Compares, and writes what was found; returns the exit status.

    Raises:
        ValueError: for a mistake in the options, before anything is run.
        RunError: if a meta-training run cannot go on.
    """
    begun = time.perf_counter()
    check_seed(options.seed)
    budget = resolve(options)
    engines = options.engines or installed(console)
    check_engines(engines)
    check_ways(options.policies)
    released = [released_policy(source) for source in options.released]
    tasks = chosen(lookup.tasks_to_evaluate(options.task), budget.tasks, console)
    families = lookup.families_of(options.task)
    config = asdict(options) | asdict(budget) | {"engines": list(engines)}
    del config["out"], config["resume"]
    folder = open_folder(options, config)
    ways = [
        settings_of(way, families, budget.horizon, options.seed, folder / "policies")
        for way in options.policies
    ]
    policies = []
    for settings in ways:
        console.print(f"meta-training by {settings.estimator}", highlight=False)
        policies.append(train_policy(settings, budget.inner_steps, console))
    policies += released
    results = []
    for task in tasks:
        results.append(compare_on(task, engines, policies, budget, options.seed, folder, console))
        console.print(loss_table(results[-1]))
        if policies:
            console.print(crossing_table(results[-1]))
    seconds = time.perf_counter() - begun
    console.print(NOTE, highlight=False)
    for path in write_results(folder, results, config, seconds):
        console.print(str(path), soft_wrap=True, markup=False)
    return 0


def open_folder(options: CompareHPO, config: Mapping[str, Any]) -> Path:
    """The folder of the comparison, new or continued; mistakes are told in this command's words."""
    try:
        return RunFolder.open(options.out, config, resume=options.resume).path
    except ValueError as error:
        told = str(error).replace("`run_dir`", "`out`").replace("--run-dir", "--out")
        raise ValueError(told) from error


def resolve(options: CompareHPO) -> Budget:
    """The budget, with what the options say otherwise."""
    found = asdict(BUDGETS[options.budget])
    for name in ("steps", "runs", "searches", "seeds", "inner_steps"):
        value = getattr(options, name)
        if value is not None and value < (least := 2 if name == "runs" else 1):
            raise ValueError(
                f"`{name}` must be at least {least}; got {value}. Try {name}={found[name]}."
            )
        found[name] = found[name] if value is None else value
    return Budget(**found)


def installed(console: Console) -> list[str]:
    """Engines that can be used; says which are left out."""
    for name, engine in ENGINES.items():
        if engine.missing:
            needs = " and ".join(engine.missing)
            console.print(
                f"{name} is left out: {needs} not installed. {INSTALL}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return [name for name, engine in ENGINES.items() if not engine.missing]


def chosen(tasks: Sequence[Task], most: int | None, console: Console) -> list[Task]:
    """At most so many of the tasks, the last of them among these; says which are left out."""
    kept = list(tasks) if most is None or len(tasks) <= most else [*tasks[: most - 1], tasks[-1]]
    if left_out := [task.name for task in tasks if task not in kept]:
        console.print(
            f"not compared on {', '.join(left_out)}, which --budget medium is",
            highlight=False,
            soft_wrap=True,
        )
    return kept


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
    reports = [report for found in searched.values() for each in found for report in each]
    curves = iter(evaluate_recipes([r.recipe for r in reports], task, k_report, budget))
    spent = [budget.steps * (i + 1) for i in range(budget.runs)]
    results = []
    for name, found in searched.items():
        runs: list[Found] = [[(report, next(curves)) for report in each] for each in found]
        results.append(engine_result(name, runs, spent))
    entrants = [*policies, *before(policies, seed)]
    optimizers = {
        str(i): lambda *, horizon, p=p: p.lopt.transform(p.theta, horizon=horizon)
        for i, p in enumerate(entrants)
    }
    of_policies = evaluate(
        k_report,
        task,
        optimizers,
        num_steps=budget.steps,
        num_seeds=budget.seeds,
        probe_every=budget.steps,
        allow_seen=True,  # and marked
    )
    return TaskResult(
        task=task.name,
        steps=budget.steps,
        budget=budget.steps * budget.runs,
        engines=results,
        policies=[
            policy_result(policy, task.name, of_policies[str(i)], results)
            for i, policy in enumerate(entrants)
        ],
    )


def before(policies: Sequence[Meta], seed: int) -> list[Meta]:
    """The first policy before its meta-training, as a control."""
    return [Meta("untrained", p.lopt, p.lopt.init(theta_key(seed)), 0, []) for p in policies[:1]]


def search_all(
    name: str, task: Task, key: Key, budget: Budget, seed: int, folder: Path, console: Console
) -> list[list[Report]]:
    """The incumbents of every repetition of a search; those that a folder holds are read."""
    starts = draw_starts(key, task, budget.searches)
    folder = folder / task.name.replace(":", "_").replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    began = time.perf_counter()
    for i in range(budget.searches):
        path = folder / f"{name}_{seed + i}.npz"
        if not path.exists():
            start = jax.tree.map(lambda x, i=i: x[i], starts)
            search = Search(Trainer(task, start, budget.steps), budget.steps * budget.runs)
            ENGINES[name].search(search, seed + i, folder)
            save_reports(path, incumbents(search.reports))
        found.append(load_reports(path))
    seconds = time.perf_counter() - began
    console.print(
        f"{name} on {task.name}: {budget.searches} searches in {seconds:.0f} s",
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
    """Reads what `save_reports` wrote."""
    with np.load(path) as file:
        columns = [file[name] for name in Report._fields]
    return [
        Report(int(spent), str(trial), int(step), float(loss), rows)
        for spent, trial, step, loss, rows in zip(*columns, strict=True)
    ]


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
            num_steps=budget.steps,
            probe_every=budget.steps,
        )
    return curves
