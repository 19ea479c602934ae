"""`l2o tune-baselines`: searches for the baselines' best settings, kept for comparisons."""

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import jax
from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from l2o import registry
from l2o.cli.arguments import Names, Steps, baselines_named, check_cache, parse
from l2o.cli.methods.method import check_positive
from l2o.evaluation.baselines import DEFAULT_BASELINES
from l2o.evaluation.report import plain_table
from l2o.evaluation.statistics import check_seeds, median_interval
from l2o.evaluation.tables import interval_text, number, setting
from l2o.evaluation.trials import Trials
from l2o.evaluation.tuning import TRIALS, Tuning, check_trials, tune
from l2o.rng import check_seed, stream
from l2o.runs.compilation import use_compilation_cache


@dataclass(frozen=True)
class TuneBaselines:
    """Tunes baselines; what was tried is kept, and a search that was stopped goes on."""

    task: Names = ("digits_mlp",)
    """Families, their evaluation tasks, or module:attribute."""
    horizon: Steps = (1000,)
    """Inner steps of a run; several are tuned for one by one."""
    baselines: Names = DEFAULT_BASELINES
    """Names from `l2o list`, or all."""
    seeds: int = 16
    """Runs at each setting."""
    trials: int = TRIALS
    """Random settings of all hyperparameters, after the learning rates."""
    seed: int = 0
    """Seed of everything random, as in the comparison that they are for."""
    processes: int = 1
    """Searches side by side, each in a process of its own."""
    cache: str = "runs/tuning"
    """Folder that keeps what was tried, for --cache of l2o evaluate."""


class Job(NamedTuple):
    """One search: a task by name, as given at the command line and in its family."""

    given: str
    task: str
    horizon: int
    baseline: str
    options: TuneBaselines


class Done(NamedTuple):
    """A search, and the seconds it took in this process."""

    job: Job
    tuning: Tuning
    seconds: float


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o tune-baselines --task NAME ...`."""
    options = parse(TuneBaselines, "tune-baselines", arguments)
    for name, values in {"task": options.task, "horizon": options.horizon}.items():
        if not values or len(set(values)) < len(values):
            raise ValueError(
                f"`{name}` must be different ones, at least one; got "
                f"{' '.join(map(str, values)) or 'none'}. Try {name}="
                f"{TuneBaselines.__dataclass_fields__[name].default[0]}."
            )
    check_positive(seeds=options.seeds, processes=options.processes)
    check_seeds(options.seeds, "seeds")
    check_trials(options.trials, "trials")
    check_seed(options.seed)
    names = baselines_named(options.baselines)
    check_cache(options.cache)
    for horizon in options.horizon:
        check_positive(horizon=horizon)
    jobs = [
        Job(given, task.name, horizon, name, options)
        for given in options.task
        for task in registry.tasks_to_evaluate((given,))
        for horizon in options.horizon
        for name in names
    ]
    done = []
    with progress(console) as display:
        begun = "compiling" if options.processes == 1 else f"in {options.processes} processes"
        shown = display.add_task(begun, total=len(jobs))

        def show(job: Job, trials: Trials) -> None:
            far = f"{len(trials.tried)} settings, best {number(trials.best.median)}"
            text = f"{job.baseline}: {far} ({job.task}, {job.horizon} steps)"
            display.update(shown, description=text, refresh=True)

        for i, found in enumerate(run_all(jobs, options.processes, show), 1):
            done.append(found)
            display.update(shown, completed=i, description=begun)
            console.print(
                f"{i}/{len(jobs)} {found.job.task}, {found.job.horizon} steps: "
                f"{found.job.baseline} {number(found.tuning.again.median)} in "
                f"{len(found.tuning.trials)} settings, {found.seconds:.0f} s",
                soft_wrap=True,
                markup=False,
                highlight=False,
            )
    console.print(results(done))
    return 0


def progress(console: Console) -> Progress:
    """Make a live display of the searches, of which nothing is seen but on a terminal."""
    columns = (
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def run_all(
    jobs: Sequence[Job], processes: int, on_tried: Callable[[Job, Trials], None]
) -> Iterator[Done]:
    """Do searches one after the other, or several at once, and yield each in order.

    What is tried is told of searches in this process.
    """
    if processes == 1:
        for job in jobs:
            yield run_one(job, functools.partial(on_tried, job))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, initializer=use_compilation_cache) as pool:
        try:
            yield from pool.map(run_one, jobs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def run_one(job: Job, on_tried: Callable[[Trials], None] = lambda trials: None) -> Done:
    """Do a search, or what is left of it."""
    options = job.options
    (task,) = [t for t in registry.tasks_to_evaluate((job.given,)) if t.name == job.task]
    k_tuning, _ = jax.random.split(stream(options.seed, "evaluation"))
    began = time.perf_counter()
    tunings = tune(
        k_tuning,
        task,
        horizon=job.horizon,
        num_seeds=options.seeds,
        baselines=(job.baseline,),
        num_random=options.trials,
        cache=options.cache,
        on_tried=on_tried,
    )
    return Done(job, tunings[job.baseline], time.perf_counter() - began)


def results(done: Sequence[Done]) -> Table:
    """Tabulate what was chosen."""
    table = plain_table("Final training loss on tuning seeds: median, 95 % interval")
    for column in ("task", "baseline", "final loss", "chosen"):
        table.add_column(column)
    for job, tuning, _ in done:
        mark = " (edge)" if tuning.at_grid_edge else "" if tuning.is_tuned else " (untuned)"
        table.add_row(
            f"{job.task} {job.horizon}",
            job.baseline,
            interval_text(*median_interval(tuning.again.final_loss)),
            setting(tuning.best.config) + mark,
        )
    return table
