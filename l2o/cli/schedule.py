"""`l2o schedule`: what a policy did to hyperparameters, and the schedule without it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from rich.console import Console

from l2o import registry, release
from l2o.cli.arguments import Names, Number, check_writable, parse
from l2o.cli.evaluate import what_to_evaluate_on
from l2o.cli.methods.method import check_positive
from l2o.evaluation.schedule import check_sets_hyperparameters, find_schedule
from l2o.evaluation.schedule_report import cost_table, write_schedules
from l2o.evaluation.statistics import check_seeds
from l2o.problem import check_can_train
from l2o.release_file import given_as
from l2o.rng import check_seed, stream


@dataclass(frozen=True)
class Schedule:
    """Records what a policy does to each hyperparameter, and what following the mean costs."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, release file or pretrained name of a policy."""
    task: Names = ()
    """Families, their evaluation tasks, or module:attribute; the families that it was meta-trained
    on if none is given."""
    horizon: Number = None
    """Inner steps of a run; if not given those of its own evaluation, or the longest that it was
    meta-trained for."""
    seeds: int = 16
    """Runs that the schedule is the mean of, and as many others that it is tried on."""
    seed: int = 0
    """Seed of everything random."""
    out: str = "runs/schedule"
    """Folder for TASK.json, which l2o.load_schedule reads, TASK.csv, TASK.png and report.html."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o schedule RUN [--task NAME] ...`."""
    options = parse(Schedule, "schedule", arguments)
    check_positive(horizon=options.horizon)
    check_seeds(options.seeds, "seeds")
    check_seed(options.seed)
    check_writable(options.out, "out", "runs/schedule")
    with given_as("RUN"):
        lopt, theta = release.load(options.source)
    check_sets_hyperparameters(lopt)
    names, horizon = what_to_evaluate_on(
        options.source, options.task, options.horizon, release.summary(options.source)
    )
    tasks = registry.tasks_to_evaluate(names)
    for task in tasks:
        check_can_train(lopt, task, horizon)
    found = []
    for task in tasks:
        console.print(f"training on {task.name}", soft_wrap=True, markup=False)
        key = stream(options.seed, "evaluation")
        found.append(
            find_schedule(key, task, lopt, theta, horizon=horizon, num_seeds=options.seeds)
        )
    config = asdict(options) | {"task": names, "horizon": horizon}
    page = write_schedules(options.out, found, config=config)
    console.print(cost_table(found))
    console.print(str(page), soft_wrap=True, markup=False)
    return 0
