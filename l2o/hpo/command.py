"""The whole path of `l2o compare-hpo`: meta-train policies, search, evaluate, write."""

import contextlib
import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
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
from l2o.hpo.search import Report, Search, Trainer, in_force, incumbents
from l2o.hpo.summary import Found, engine_result, policy_result, read_off
from l2o.planning import plan
from l2o.problem import check_can_train
from l2o.run_folder import RunError, RunFolder, atomic_write
from l2o.settings import MetaTraining
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
    """small: two tasks of a family at most, minutes; medium: hours; large: a day. It sets what
    follows."""
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

BUDGETS: Mapping[BudgetName, Budget] = {
    "small": Budget(400, 16, 3, 8, 1.5e6, tasks=2),
    "medium": Budget(1000, 48, 8, 16, 1e7),
    "large": Budget(1000, 128, 16, 32, 1e8),
}


def run_comparison(options: CompareHPO, console: Console) -> int:
    """Compares, and writes what was found; returns the exit status.

    Raises:
        ValueError: for a mistake in the options, before anything is run.
        RunError: if a meta-training run or a search cannot go on.
    """
    begun = time.perf_counter()
    budget = resolve(options)
    check_seed(options.seed)
    check_seed(options.seed + budget.searches - 1)  # each search has its own
    check_names(options)
    engines = options.engines or recorded_engines(options) or installed(console)
    check_engines(engines)
    check_ways(options.policies)
    released = [released_policy(source) for source in options.released]
    tasks = chosen(options.task, budget.tasks, console)
    families = lookup.families_of(options.task)
    ways = [
        settings_of(way, families, budget.horizon, options.seed, Path(options.out) / "policies")
        for way in options.policies
    ]
    # Mistakes are found before anything is written.
    designs = [plan.resolve(settings).lopt for settings in ways]
    for lopt in (*designs, *(policy.lopt for policy in released)):
        for task in tasks:
            check_can_train(lopt, task, budget.steps)
    config = asdict(options) | asdict(budget) | {"engines": sorted(engines)}
    del config["out"], config["resume"]
    with opened(options, config, console) as folder:
        if ways and budget.steps < SHORTEST:
            console.print(
                f"warning: policies are meta-trained on runs of {SHORTEST} steps, longer than "
                f"--steps {budget.steps}",
                soft_wrap=True,
            )
        policies = []
        for settings in ways:
            console.print(f"meta-training by {settings.estimator}", highlight=False)
            policies.append(trained(settings, budget.inner_steps, console))
        controls = before(policies, options.seed)
        results = []
        for task in tasks:
            result = compare_on(
                task,
                engines,
                [*policies, *released, *controls],
                budget,
                options.seed,
                folder,
                console,
            )
            results.append(result)
            console.print(loss_table(result))
            if table := crossing_table(result):
                console.print(table)
        console.print(NOTE, highlight=False)
        seconds = None if options.resume else time.perf_counter() - begun
        for path in write_results(folder, results, config, seconds):
            console.print(str(path), soft_wrap=True, markup=False)
    return 0


@contextlib.contextmanager
def opened(options: CompareHPO, config: Mapping[str, Any], console: Console) -> Iterator[Path]:
    """The folder of the comparison, new or continued, kept from other processes.

    Raises:
        ValueError: if it cannot be, in this command's words.
    """
    with contextlib.ExitStack() as stack:
        try:
            run = RunFolder.open(options.out, config, resume=options.resume)
            stack.enter_context(
                run.locked(lambda text: console.print(f"warning: {text}", soft_wrap=True))
            )
        except ValueError as error:
            told = str(error).replace("`run_dir`", "`out`").replace("--run-dir", "--out")
            raise ValueError(told) from error
        yield run.path


def trained(settings: MetaTraining, inner_steps: float, console: Console) -> Meta:
    """A policy, meta-trained or read.

    Raises:
        RunError: if it cannot be, in words that are not about flags of another command.
    """
    try:
        return train_policy(settings, inner_steps, console)
    except ValueError as error:  # its settings were found right before
        told = re.sub(r",? or another --run-dir|--run-dir", "", str(error))
        raise RunError(
            f"{settings.run_dir} cannot be used or gone on with: {told} If it is damaged or of "
            "another version of l2o, delete it, and go on with --resume."
        ) from error


def recorded_engines(options: CompareHPO) -> list[str]:
    """Engines of the comparison that is to be continued; none if there is none."""
    path = RunFolder(Path(options.out)).config
    if not options.resume or not path.is_file():
        return []
    with contextlib.suppress(ValueError):  # told when it is opened
        found = json.loads(path.read_bytes())
        names = found.get("engines") if isinstance(found, dict) else None
        return [name for name in ENGINES if name in names] if isinstance(names, list) else []
    return []


def check_names(options: CompareHPO) -> None:
    """Raises a `ValueError` that says what to type if no task is named, or a release twice."""
    if not options.task:
        raise ValueError("`task` must name at least one task; got none. Try task=digits_mlp.")
    if len(set(options.released)) < len(options.released):
        raise ValueError(f"`released` must differ; got {' '.join(options.released)}. Drop one.")


def resolve(options: CompareHPO) -> Budget:
    """The budget, with what the options say otherwise."""
    found = asdict(BUDGETS[options.budget])
    for name in ("steps", "runs", "searches", "seeds", "inner_steps"):
        value = getattr(options, name)
        least = 2 if name == "runs" else 1
        if value is not None and not least <= value < math.inf:
            raise ValueError(
                f"`{name}` must be at least {least} and finite; got {value}. "
                f"Try {name}={found[name]}."
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


def chosen(names: Sequence[str], most: int | None, console: Console) -> list[Task]:
    """The evaluation tasks of these names, of a family at most so many; says which are left out.

    Raises:
        ValueError: if a name is unknown.
    """
    kept: dict[str, Task] = {}
    for name in names:
        tasks = lookup.tasks_to_evaluate([name])
        few = [*tasks[: most - 1], tasks[-1]] if most and len(tasks) > most else tasks
        kept |= {task.name: task for task in few}
    named = [task.name for task in lookup.tasks_to_evaluate(names)]
    if left_out := [name for name in named if name not in kept]:
        console.print(
            f"not compared on {', '.join(left_out)}; name them, or take --budget medium",
            highlight=False,
            soft_wrap=True,
        )
    return list(kept.values())


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
        num_steps=budget.steps,
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


def before(policies: Sequence[Meta], seed: int) -> list[Meta]:
    """The first policy before its meta-training, as a control."""
    return [Meta("untrained", p.lopt, plan.first_theta(p.lopt, seed), 0, []) for p in policies[:1]]


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
            num_steps=budget.steps,
            probe_every=budget.steps,
        )
    return curves
