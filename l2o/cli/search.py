"""`l2o search`: Bayesian search and successive halving over settings of meta-training.

A trial is a run folder of `l2o meta-train`, a rung a resume of it that stops a little later. All
of its rungs are for the same `--steps`, so that rates which follow the length of a run are the same
ones at each, and a trial at its last rung has the theta and the metrics that its command line makes
in one go. Each rung ends in a checkpoint and its validation, so its thetas of the highest score and
of the lowest meta-loss so far can be others.
"""

import contextlib
import dataclasses
import functools
import json
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console

from l2o.cli.arguments import Names
from l2o.cli.meta_train import EXIT_ON_SIGNAL, parse_settings
from l2o.cli.methods.method import check_positive
from l2o.cli.search_worker import work
from l2o.cli.searchable import searchable, with_values
from l2o.cli.settings import MetaTraining
from l2o.cli.validation import Validation
from l2o.distributed import processes
from l2o.outer_loop import steps_of_chunk
from l2o.runs.logging import check_trackers
from l2o.search.halving import Trial, best_trial, rungs_of
from l2o.search.helpers import helpers, is_helper
from l2o.search.report import NAME, search_table, write_search_report
from l2o.search.space import Setting, Value, parse_space
from l2o.search.study import SamplerName, Study, open_folder

FIXED = {"steps": "rungs are parts of", "seed": "all trials share"}
"""Settings that cannot be searched over, and why."""


@dataclass(frozen=True)
class Search:
    """Searches over settings of meta-training; options of `l2o meta-train` can be given, too."""

    over: Names = ()
    """Settings to search over: NAME for a tenth to ten times what it is, NAME=LOW:HIGH for a range
    (by its logarithm where both are positive), NAME=A,B,C for a list."""
    budget: float = 0.0
    """Inner steps of all trials together, without validation; more of them go on with a search."""
    workers: int = 1
    """Processes that search, on this machine. The same command on another machine is one more."""
    sampler: SamplerName = "tpe"
    """What draws settings: tpe, a model of the scores so far, or random."""
    eta: int = 3
    """Each rung has so many times the steps of the one before; the best 1/eta of it go on."""
    rungs: int = 3
    """Rungs at which trials are scored; 1 trains all trials to the end."""
    out: str = "runs/search"
    """Folder of the search, shared by its workers; a search that is there is gone on with."""


def command(arguments: Sequence[str], console: Console) -> int:
    """`l2o search [PRESET] [options of meta-train] --over NAME ... --budget INNER_STEPS`."""
    options, words = tyro.cli(
        Search,
        prog="l2o search [PRESET] [options of l2o meta-train]",
        args=list(arguments),
        return_unknown_args=True,
        config=[tyro.conf.FlagCreatePairsOff],
    )
    settings = fixed_settings(words)
    check_options(options)
    share = len(processes.cores()) // options.workers  # a helper is told of all of them, too
    processes.use_cpu_cores(settings.processes.devices or share)
    study = find_study(options, settings)
    config = what(options, settings, study)
    open_folder(study.folder, config)
    line = [sys.executable, "-m", "l2o", "search", *arguments]
    with helpers(line, 0 if is_helper() else options.workers - 1) as started:
        is_over = work(study, settings, console, started)
    report(study, words, config, console)
    if not is_over:
        console.print("stopped; type the same again to go on", soft_wrap=True)
    return 0 if is_over else EXIT_ON_SIGNAL + signal.SIGINT


def fixed_settings(words: Sequence[str]) -> MetaTraining:
    """The settings of all trials, but for what is searched over.

    Raises:
        ValueError: if they name a folder, or a part of meta-training that trials do not have.
    """
    settings = parse_settings(words)
    for flag in ("--run-dir", "--resume"):
        for word in words:
            if word.partition("=")[0].replace("_", "-") == flag:
                raise ValueError(
                    f"`{flag}` is for l2o meta-train; got {word}. Drop it: trials are in "
                    "--out, and a search that is there is gone on with."
                )
    if settings.processes.distributed:
        raise ValueError(
            "`distributed` is for l2o meta-train; got --distributed. Start l2o search on each "
            "machine with the same --out."
        )
    check_trackers(settings.output.log)
    if not settings.validation.validate_on:
        raise ValueError(
            "`validate_on` must name held-out families, by which trials are judged; got none. "
            "Try --validate-on digits_mlp_32x32, which --task must not have."
        )
    return dataclasses.replace(
        settings,
        evaluate=False,  # neither are tasks of the report looked at
        output=dataclasses.replace(settings.output, quiet=True),
    )


def check_options(options: Search) -> None:
    """Raises a `ValueError` that says what to type if an option is out of its range."""
    if find_spec("optuna") is None:
        raise ValueError(
            "`search` needs the package optuna; got an environment without it. "
            "Try pip install 'l2o[tune]'."
        )
    for name, least in (("workers", 1), ("eta", 2), ("rungs", 1)):
        if (value := getattr(options, name)) < least:
            raise ValueError(
                f"`{name}` must be at least {least}; got {value}. Try {name}={least + 1}."
            )


def find_study(options: Search, settings: MetaTraining) -> Study:
    """The search that the options describe; nothing is written.

    Raises:
        ValueError: for a mistake in the settings, at the ends of a range, too, or a budget that is
            less than a whole run.
    """
    for word in options.over:
        name = word.partition("=")[0].replace("-", "_")
        if name in FIXED:
            raise ValueError(f"`over` cannot hold {name}, which {FIXED[name]}. Drop it.")
    known = searchable(settings)
    space = parse_space(options.over, known)
    settings.build()
    for values in corners(space):
        unvalidated(with_values(settings, values)).build()
    chunk = steps_of_chunk(settings.steps, settings.log_every)
    rungs = rungs_of(settings.steps, options.eta, options.rungs, chunk)

    @functools.lru_cache(maxsize=8)
    def inner_steps(values: tuple[tuple[str, Value], ...]) -> int:
        """The inner steps of an outer step; what does not fit together fails when it is begun."""
        with contextlib.suppress(ValueError):
            return unvalidated(with_values(settings, dict(values))).build().learner.steps
        return unvalidated(settings).build().learner.steps

    start = {setting.name: known[setting.name].default for setting in space}
    is_inside = all(setting.holds(start[setting.name]) for setting in space)
    whole = settings.steps * inner_steps(())
    check_positive(budget=options.budget or None)
    if options.budget < whole:
        raise ValueError(
            f"`budget` must be at least that of one whole run, {whole:,} inner steps; got "
            f"{options.budget:g}. Try budget={10 * whole:.2g}."
        )
    return Study(
        folder=Path(options.out).absolute(),
        space=space,
        start={name: value for name, value in start.items() if value is not None}
        if is_inside
        else None,
        rungs=rungs,
        eta=options.eta,
        budget=options.budget,
        sampler=options.sampler,
        seed=settings.seed,
        cost=lambda values: inner_steps(tuple(values.items())),
    )


def unvalidated(settings: MetaTraining) -> MetaTraining:
    """Settings without validation, whose parts are built sooner."""
    return dataclasses.replace(settings, validation=Validation())


def corners(space: Sequence[Setting]) -> Iterator[dict[str, Value]]:
    """Each end of each range, and each value of each list, alone."""
    for setting in space:
        for value in setting.values:
            yield {setting.name: value}


def what(options: Search, settings: MetaTraining, study: Study) -> dict[str, Any]:
    """What makes a search itself and no other; workers and budgets may change."""
    return {
        "over": {setting.name: list(setting.values) for setting in study.space},
        "rungs": list(study.rungs),
        "eta": options.eta,
        "sampler": options.sampler,
        "settings": settings.recorded(),
    }


def trial_command(words: Sequence[str], trial: Trial) -> str:
    """The command line that makes a trial's whole run elsewhere."""
    flags = [
        word
        for name, value in trial.values.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return shlex.join(["l2o", "meta-train", *words, *flags])


def report(study: Study, words: Sequence[str], config: Mapping[str, Any], console: Console) -> None:
    """Write the report of a search, and show it."""
    trials = study.trials()
    commands = {trial.number: trial_command(words, trial) for trial in trials}
    page = write_search_report(study.folder, trials, study.rungs, commands=commands, config=config)
    console.print(search_table(json.loads((study.folder / NAME).read_text())))
    if best := best_trial(trials):
        console.print(f"best: {study.run_dir(best.number)}", soft_wrap=True, markup=False)
        console.print(commands[best.number], soft_wrap=True, markup=False, highlight=False)
    console.print(str(page), soft_wrap=True, markup=False)
