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
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro
from jax.errors import JaxRuntimeError
from rich.console import Console

from l2o.cli.arguments import Names
from l2o.cli.meta_train import EXIT_ON_SIGNAL, meta_train, parse_settings
from l2o.cli.methods.method import check_positive
from l2o.cli.settings import MetaTraining
from l2o.cli.topology import connected
from l2o.cli.validation import Validation
from l2o.distributed import processes
from l2o.evaluation.tables import number
from l2o.evaluation.validation import read_rows
from l2o.outer_loop import steps_of_chunk
from l2o.runs.folder import DivergenceError, RunError, RunFolder
from l2o.search.halving import Trial, best_trial, rungs_of
from l2o.search.helpers import failures, helpers, is_orphan
from l2o.search.report import NAME, search_table, shown, write_search_report
from l2o.search.space import Known, Setting, Value, parse_space
from l2o.search.study import Claim, SamplerName, Study, open_folder

POLL_SECONDS = 0.5
"""Seconds after which a worker that has nothing to do asks again."""

FIXED = {"steps": "rungs are parts of", "seed": "all trials share"}
"""Settings that cannot be searched over, and why."""

FAULTS = (RunError, JaxRuntimeError, MemoryError)
"""What ends a trial that is too large or whose files are damaged, or all on a broken machine."""


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
    settings = with_devices(settings, options.workers)
    with connected(settings.processes, {}):
        study = find_study(options, settings)
        config = what(options, settings, study)
        open_folder(study.folder, config)
        own = ["--workers", "1"]
        if settings.processes.devices is not None:
            own += ["--devices", str(settings.processes.devices)]
        line = [sys.executable, "-m", "l2o", "search", *arguments, *own]
        with helpers(line, options.workers - 1) as started:
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


def with_devices(settings: MetaTraining, workers: int) -> MetaTraining:
    """Settings with as many devices as each worker's share of the cores, unless they say."""
    if settings.processes.devices is not None or workers == 1:
        return settings
    share = max(1, len(processes.cores()) // workers)
    return dataclasses.replace(
        settings, processes=dataclasses.replace(settings.processes, devices=share)
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


def searchable(settings: MetaTraining) -> dict[str, Known]:
    """Settings that can be searched over, by the name of their flag without its dashes."""
    found = {}
    for name, path in paths(settings).items():
        *groups, field = path
        owner: Any = functools.reduce(getattr, groups, settings)
        hint, default = get_type_hints(type(owner))[field], getattr(owner, field)
        kinds = get_args(hint) or (hint,)
        if name == "window":
            ends = settings.horizon
            fitting = (w for w in range(1, ends[0] + 1) if all(end % w == 0 for end in ends))
            # A whole run at once is for some methods alone.
            windows = tuple(w for w in fitting if w < ends[-1] or w == default)
            found[name] = Known(default, int, windows)
        elif get_origin(hint) is Literal:
            found[name] = Known(default, str, kinds)
        elif float in kinds or int in kinds:
            found[name] = Known(default, float if float in kinds else int)
    return found


def paths(settings: MetaTraining) -> dict[str, tuple[str, ...]]:
    """Where each setting of the method is among the settings, and two of the run, by its flag."""
    found: dict[str, tuple[str, ...]] = {"window": ("window",), "ema_decay": ("ema_decay",)}

    def add(owner: Any, path: tuple[str, ...], prefix: str) -> None:
        hints = get_type_hints(type(owner), include_extras=True)
        for field in dataclasses.fields(owner):
            value, here = getattr(owner, field.name), (*path, field.name)
            if dataclasses.is_dataclass(value):
                is_flat = hasattr(hints[field.name], "__metadata__")
                add(value, here, prefix if is_flat else f"{prefix}{field.name}.")
            else:
                found[prefix + field.name] = here

    add(settings.method, ("method",), "")
    return found


def with_values(settings: MetaTraining, values: Mapping[str, Value]) -> MetaTraining:
    """Settings with other values of those that are searched over."""

    def replaced(owner: Any, path: Sequence[str], value: Value) -> Any:
        name, *rest = path
        new = replaced(getattr(owner, name), rest, value) if rest else value
        return dataclasses.replace(owner, **{name: new})

    where = paths(settings)
    for name, value in values.items():
        settings = replaced(settings, where[name], value)
    return settings


def trial_settings(settings: MetaTraining, claim: Claim) -> MetaTraining:
    """The settings by which a trial is begun or goes on."""
    output = dataclasses.replace(
        settings.output,
        run_dir=str(claim.run_dir),
        resume=RunFolder(claim.run_dir).config.exists(),
    )
    return dataclasses.replace(with_values(settings, claim.trial.values), output=output)


def trial_command(words: Sequence[str], trial: Trial) -> str:
    """The command line that makes a trial's whole run elsewhere."""
    flags = [
        word
        for name, value in trial.values.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    return shlex.join(["l2o", "meta-train", *words, *flags])


def work(
    study: Study, settings: MetaTraining, console: Console, started: Sequence[subprocess.Popen]
) -> bool:
    """Train trials until the search is over; False if it has been stopped before.

    A trial that ends in a fault has failed, and the next one is trained.

    Raises:
        RunError, JaxRuntimeError, MemoryError: if two in a row end in faults, so that the machine
            may have them. The second has not failed: who works next goes on with it.
    """
    is_faulty, ended = False, set()
    seen = {(t.number, step) for t in study.trials() for step in (*t.scores, t.error)}
    while not is_orphan():
        with study.claimed() as claim:
            if claim is not None:
                try:
                    if not train(study, claim, settings):
                        return False
                    is_faulty = False
                except FAULTS as error:
                    if is_faulty:
                        raise
                    is_faulty = True
                    study.fail(claim, first_line(error))
        for trial in study.trials():
            for step, text in progress_lines(trial):
                if (trial.number, step) not in seen:
                    seen.add((trial.number, step))
                    console.print(text, soft_wrap=True, markup=False, highlight=False)
        if claim is None and study.is_over():
            return True
        for worker, text in failures(started):
            if worker not in ended:
                ended.add(worker)
                console.print(text, soft_wrap=True, markup=False, highlight=False)
        if claim is None:
            time.sleep(POLL_SECONDS)  # others may finish what lets a trial go on
    return False


def train(study: Study, claim: Claim, settings: MetaTraining) -> bool:
    """Train a trial to its target, and write down how it went; False if a signal has stopped it."""
    own = trial_settings(settings, claim)
    try:
        parts = own.build()
    except ValueError as error:  # values that do not fit each other
        study.fail(claim, str(error))
        return True
    try:
        if meta_train(own, Console(quiet=True), parts=parts, until=claim.trial.target):
            return False
    except DivergenceError as error:
        study.fail(claim, str(error))
        return True
    rows = read_rows(RunFolder(claim.run_dir).validation)
    scores = [row["score"] for row in rows if row["step"] == claim.trial.target]
    if not scores:
        raise RunError(
            f"{claim.run_dir} has no score at step {claim.trial.target}, which its last "
            "checkpoint is beyond."
        )
    study.finish(claim, scores[-1])
    return True


def first_line(error: Exception) -> str:
    """The first line of an error, which of XLA's are many, and its kind if it is not ours."""
    line = str(error).partition("\n")[0]
    return line if isinstance(error, RunError) else f"{type(error).__name__}: {line}"


def progress_lines(trial: Trial) -> Iterator[tuple[int | str, str]]:
    """What is said of a trial at each of its rungs."""
    values = ", ".join(f"{name} {shown(value)}" for name, value in trial.values.items())
    for step, score in trial.scores.items():
        yield step, f"trial {trial.number:03} at step {step}: score {number(score)} ({values})"
    if trial.error:
        yield trial.error, f"trial {trial.number:03} failed ({values}): {trial.error}"


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
