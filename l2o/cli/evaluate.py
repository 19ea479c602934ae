"""`l2o evaluate`: a learned optimizer beside tuned baselines, on held-out seeds."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console

from l2o import registry, release
from l2o.cli.arguments import (
    Name,
    Names,
    Number,
    baselines_named,
    check_cache,
    check_renamed,
    check_writable,
    parse,
)
from l2o.cli.methods.method import check_positive
from l2o.cli.settings import first_theta
from l2o.cli.tune_baselines import progress
from l2o.evaluation.baselines import DEFAULT_BASELINES
from l2o.evaluation.compare import Comparison, compare
from l2o.evaluation.report import comparison_table, write_report
from l2o.evaluation.statistics import check_seeds
from l2o.evaluation.tables import number
from l2o.evaluation.trials import Trials
from l2o.evaluation.tuning import TRIALS, check_trials
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.release_file import given_as
from l2o.rng import check_seed, stream
from l2o.task import Task


@dataclass(frozen=True)
class Evaluate:
    """Compares a released learned optimizer with tuned baselines on held-out seeds."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN_OR_FILE")]
    """Run folder, for its last theta, release file, for instance a run's validated.safetensors, or
    the name of one that comes with the package."""
    task: Names = ()
    """Families, their evaluation tasks, or module:attribute; the families that it was meta-trained
    on if none is given."""
    horizon: Number = None
    """Inner steps of each run; if not given those of its own evaluation, or the longest that it
    was meta-trained for."""
    seeds: int = 16
    """Runs of each optimizer on each task."""
    seed: int = 0
    """Seed of everything random."""
    baselines: Names = DEFAULT_BASELINES
    """Rivals, each tuned for each task: names from `l2o list`, or all."""
    trials: int = TRIALS
    """Random settings of all hyperparameters of each rival, after its learning rates."""
    cache: Name = None
    """Folder of tunings by l2o tune-baselines; new ones are kept there, too."""
    optimizer: Name = None
    """Design by module:attribute, if it does not come with the package."""
    out: str = "runs/evaluation"
    """Folder for report.json and report.html; replaced if there is one."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o evaluate RUN_OR_FILE --task NAME ...`."""
    check_renamed(arguments, {"--steps": "--horizon"})
    options = parse(Evaluate, "evaluate", arguments)
    check_positive(seeds=options.seeds)
    if options.horizon is not None:
        check_positive(horizon=options.horizon)
    check_seeds(options.seeds, "seeds")
    check_trials(options.trials, "trials")
    check_seed(options.seed)
    design = registry.design(options.optimizer) if options.optimizer else None
    baselines = baselines_named(options.baselines)
    check_writable(options.out, "out", "runs/evaluation")
    if options.cache:
        check_cache(options.cache)
    with given_as("RUN_OR_FILE"):
        lopt, theta = release.load(options.source, design=design)
    summary = release.summary(options.source)
    families, horizon = what_to_evaluate_on(options.source, options.task, options.horizon, summary)
    Path(options.out).mkdir(parents=True, exist_ok=True)
    comparisons = compare_on(
        registry.tasks_to_evaluate(families),
        lopt,
        theta,
        first_theta(lopt, summary.get("seed", 0)),
        seen=summary.get("trained_on", []),
        validated=summary.get("validated_on", []),
        horizon=horizon,
        num_seeds=options.seeds,
        seed=options.seed,
        baselines=baselines,
        trials=options.trials,
        cache=options.cache,
        console=console,
    )
    config = asdict(options) | {"task": families, "horizon": horizon}
    paths = write_report(options.out, comparisons, config=config)
    console.print(comparison_table([c.summary for c in comparisons]))
    console.print(str(paths["report.html"]), soft_wrap=True, markup=False)
    return 0


def what_to_evaluate_on(
    source: str, task: tuple[str, ...], horizon: int | None, summary: Mapping[str, Any]
) -> tuple[tuple[str, ...], int]:
    """The tasks and the horizon: those that were given, or those of meta-training.

    Raises:
        ValueError: if neither says.
    """
    if not task:
        families = summary.get("task") or ()
        task = (families,) if isinstance(families, str) else tuple(families)
    if horizon is None:
        own = summary.get("eval") or {}
        steps = own.get("horizon") or summary.get("eval_steps") or summary.get("horizon") or 0
        horizon = int(np.max(steps))
    if not task:
        raise ValueError(
            f"`task` must name at least one, as {source} does not say what it was "
            "meta-trained on; got none. Try task=digits_mlp."
        )
    if not horizon:
        raise ValueError(
            f"`horizon` must be given, as {source} does not say what it was meta-trained "
            "for; got none. Try horizon=1000."
        )
    return task, horizon


def compare_on(
    tasks: Sequence[Task],
    lopt: LearnedOptimizer,
    theta: Theta,
    theta0: Theta,
    *,
    seen: Sequence[str],
    validated: Sequence[str],
    horizon: int,
    num_seeds: int,
    seed: int,
    baselines: Sequence[str],
    trials: int,
    cache: str | None = None,
    console: Console,
) -> list[Comparison]:
    """Compare a learned optimizer with tuned baselines and its untrained design on each task."""
    comparisons = []
    with progress(console) as display:
        rivals = [*baselines, "untrained"]
        shown = display.add_task("", total=len(tasks) * len(rivals))

        def show(before: int, name: str, tried: Trials) -> None:
            far = f"{name}: {len(tried.tried)} settings, best {number(tried.best.median)}"
            done = before + rivals.index(name)
            display.update(shown, completed=done, description=far, refresh=True)

        for i, task in enumerate(tasks):
            console.print(f"evaluating on {task.name}", soft_wrap=True, markup=False)
            display.update(shown, description=f"compiling ({task.name})", refresh=True)
            comparisons.append(
                compare(
                    stream(seed, "evaluation"),
                    task,
                    lambda *, horizon: lopt.transform(theta, horizon=horizon),
                    horizon=horizon,
                    num_seeds=num_seeds,
                    controls={
                        "untrained": lambda *, horizon: lopt.transform(theta0, horizon=horizon)
                    },
                    seen=frozenset(seen),
                    validated=frozenset(validated),
                    allow_seen=True,
                    baselines=baselines,
                    num_random=trials,
                    cache=cache,
                    on_tried=functools.partial(show, i * len(rivals)),
                )
            )
    return comparisons
