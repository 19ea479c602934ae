"""`l2o suite`: optimizers on many tasks, and what that adds up to."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from l2o import registry
from l2o.cli.arguments import Flag, Names, Number, baselines_named, check_writable, parse
from l2o.datasets.fetch import data_rows
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.report import plain_table
from l2o.evaluation.statistics import check_seeds
from l2o.evaluation.tuning import check_trials
from l2o.rng import check_seed
from l2o.suite.entrant import Entrant, find_entrants
from l2o.suite.report import (
    NAME,
    progress_line,
    read_suite_report,
    show,
    write_suite_report,
)
from l2o.suite.run import BUDGETS, Budget, run_suite
from l2o.suite.suite_task import SuiteTask, check_names, selected
from l2o.suite.summary import summarise


@dataclass(frozen=True)
class Suite:
    """Runs optimizers on a suite of tasks, tuned where they can be; what is done is kept."""

    optimizer: Names = ()
    """Baselines, pretrained optimizers, release files, run folders, or module:attribute;
    NAME=WORD gives one a name of its own, and all stands for every baseline."""
    reference: str = "nadamw"
    """Tuned baseline whose final losses are the targets of all."""
    suite: str = "suite-1"
    """Name of the suite, or module:attribute of a sequence of l2o.SuiteTask."""
    tasks: Names = ()
    """Tasks of the suite; all of the budget if none."""
    budget: Literal["quick", "full"] = "quick"
    """Quick: some small tasks, 8 seeds, learning rates alone. Full: all tasks, 16 seeds, all
    hyperparameters."""
    seeds: Number = None
    """Runs of each optimizer on each task, at least 8; the budget's if none."""
    trials: Number = None
    """Random settings of all hyperparameters of each rival; the budget's if none."""
    seed: int = 0
    """Seed of everything random."""
    allow_seen: Flag = False
    """Accept, and mark, tasks whose family and data an optimizer was meta-trained on."""
    out: str = "runs/suite"
    """Folder for results and the report; what is there of the same settings is not run again."""
    list: Flag = False
    """List the tasks and stop."""
    json: Flag = False
    """Print JSON: the tasks with --list, else the report."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o suite --optimizer NAME ...`."""
    options = parse(Suite, "suite", arguments)
    check_seed(options.seed)
    suite = find_suite(options.suite)
    if options.list:
        list_tasks(selected(suite, options.tasks), console, as_json=options.json)
        return 0
    budget = budget_of(options)
    if budget.is_quick and not options.tasks:
        quick = tuple(entry for entry in suite if entry.is_quick)
        suite = quick or suite
    suite = selected(suite, options.tasks)
    reference = find_reference(options.reference)
    entrants = find_all(options.optimizer)
    check_out(options.out)
    before = report_before(options.out)
    others = [entrant for entrant in entrants if entrant.baseline is not reference.baseline]
    total = len(suite) * (1 + len(others))
    progress = Console(stderr=True) if options.json else console
    found = []

    def report() -> Path:
        config = asdict(options) | {"command": shlex.join(["l2o", "suite", *arguments])}
        config |= asdict(budget) | {"seconds": sum(result.seconds for result in found)}
        summary = summarise(suite, found, reference.name, [*others, reference])
        return write_suite_report(options.out, summary, suite=options.suite, config=config)

    try:
        for result in run_suite(
            suite,
            others,
            reference=reference,
            budget=budget,
            folder=options.out,
            seed=options.seed,
            allow_seen=options.allow_seen,
        ):
            found.append(result)
            progress.print(
                progress_line(found, total), soft_wrap=True, markup=False, highlight=False
            )
    except BaseException:  # what was found before a stop is shown, too
        if found:
            progress.print(f"stopped; so far: {report()}", soft_wrap=True, markup=False)
        raise
    progress.print("writing the report")
    page = report()
    if gone := before - report_before(options.out):
        progress.print(
            f"it replaces a report that had {', '.join(sorted(gone))}, too; results are kept: name "
            "all of them for a report of all",
            soft_wrap=True,
            markup=False,
        )
    if options.json:
        print((page.parent / NAME).read_text())
    else:
        show(options.out, console)
        console.print(str(page), soft_wrap=True, markup=False)
    return 0


def report_before(folder: str) -> frozenset[str]:
    """The optimizers and tasks of the report that a folder has, if any."""
    try:
        content = read_suite_report(folder)
    except ValueError:
        return frozenset()
    return frozenset(
        [e["name"] for e in content["entrants"]] + [r["task"] for r in content["rows"]]
    )


def check_out(folder: str) -> None:
    """Raises a `ValueError` if a folder cannot be written to, or holds another kind of report."""
    check_writable(folder, "out", "runs/suite")
    if (Path(folder) / "report.json").exists() or (Path(folder) / "config.json").exists():
        raise ValueError(
            f"`out` must be a folder for suites; got {folder}, which holds a run or a comparison. "
            "Try out=runs/suite."
        )


def budget_of(options: Suite) -> Budget:
    """The budget of this name, with what is given besides.

    Raises:
        ValueError: if there are too few seeds or trials.
    """
    budget = BUDGETS[options.budget]
    if options.seeds is not None:
        check_seeds(options.seeds, "seeds")
        budget = replace(budget, num_seeds=options.seeds)
    if options.trials is not None:
        check_trials(options.trials, "trials")
        budget = replace(budget, num_random=options.trials)
    return budget


def find_suite(name: str) -> tuple[SuiteTask, ...]:
    """The suite of this name or path.

    Raises:
        ValueError: if there is none, or it is no sequence of suite tasks.
    """
    known = registry.SUITES
    found = known[name] if name in known else registry.import_by_path("suite", name, known)
    suite = found() if callable(found) else found
    if not isinstance(suite, list | tuple) or not all(isinstance(e, SuiteTask) for e in suite):
        raise ValueError(
            f"`suite` must be a sequence of l2o.SuiteTask, or a function that returns one; got "
            f"{name}, which gives {type(suite).__name__}. Try suite=suite-1."
        )
    if not suite:
        raise ValueError(f"`suite` must have tasks; got {name}, which is empty. Try suite=suite-1.")
    check_names(suite)
    return tuple(suite)


def find_reference(name: str) -> Entrant:
    """The baseline that is the reference.

    Raises:
        ValueError: if it is none, or nothing of it is tuned.
    """
    if name not in BASELINES and ":" not in name:
        tuned = [known for known, baseline in BASELINES.items() if baseline.is_tuned]
        raise registry.unknown_name_error("reference", name, tuned)
    (entrant,) = find_entrants((name,))
    if not entrant.baseline.is_tuned:
        raise ValueError(
            f"`reference` must be a baseline that is tuned; got {name}, of which nothing is. "
            "Try reference=nadamw."
        )
    return entrant


def find_all(words: Sequence[str]) -> tuple[Entrant, ...]:
    """The optimizers that take part; "all" stands for every baseline.

    Raises:
        ValueError: if there are none, or one is unknown.
    """
    if not words:
        raise ValueError(
            "`optimizer` must name at least one; got none. Try --optimizer digits adam."
        )
    every = baselines_named(("all",)) if "all" in words else ()
    named = [word for word in words if word != "all" and word not in every]
    return find_entrants((*named, *every))


def list_tasks(suite: Sequence[SuiteTask], console: Console, *, as_json: bool) -> None:
    """Show the tasks of a suite, and which data are not there yet."""
    missing = {row.name for row in data_rows() if not row.is_present}
    if as_json:
        names = ("name", "kind", "horizon", "solved", "axis", "dataset", "is_quick")
        print(json.dumps([{name: getattr(e, name) for name in names} for e in suite], indent=2))
        return
    table = plain_table(f"{len(suite)} tasks")
    for column in ("task", "model", "steps", "quick", "beyond usual", "data"):
        table.add_column(column, overflow="fold", no_wrap=column == "task")
    for e in suite:
        data = f"{e.dataset} (not fetched)" if e.dataset in missing else e.dataset or "in l2o"
        table.add_row(e.name, e.kind, str(e.horizon), "yes" if e.is_quick else "", e.axis, data)
    console.print(table)
    needed = [name for name in dict.fromkeys(e.dataset for e in suite) if name in missing]
    if needed:
        console.print(f"fetch data by: l2o data fetch {' '.join(needed)}", soft_wrap=True)
