"""What one worker of `l2o search` does: it trains trials until the search is over."""

import dataclasses
import errno
import subprocess
import time
from collections.abc import Iterator, Sequence

from jax.errors import JaxRuntimeError
from rich.console import Console

from l2o.cli.meta_train import meta_train
from l2o.cli.searchable import with_values
from l2o.cli.settings import MetaTraining
from l2o.evaluation.tables import number
from l2o.evaluation.validation import read_rows
from l2o.runs.folder import DivergenceError, RunError, RunFolder
from l2o.search.halving import Trial
from l2o.search.helpers import failures, is_orphan
from l2o.search.report import shown
from l2o.search.study import Claim, Study

POLL_SECONDS = 0.5
"""Seconds after which a worker that has nothing to do asks again."""

FAULTS = (RunError, JaxRuntimeError, MemoryError)
"""What ends a trial that is too large or whose files are damaged, or all on a broken machine."""


def work(
    study: Study, settings: MetaTraining, console: Console, started: Sequence[subprocess.Popen]
) -> bool:
    """Train trials until the search is over; False if it has been stopped before.

    A trial that ends in a fault has failed, and the next one is trained.

    Raises:
        RunError: if two in a row end in faults, so that the machine may have them, or the disk is
            full. The last has not failed: who works next goes on with it.
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
                    if is_faulty or is_of_full_disk(error):
                        advice = "type the same again"
                        line = first_line(error).replace("continue with --resume", advice)
                        raise RunError(line) from error
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
    except ValueError as error:  # its folder is not what it was
        raise RunError(str(error)) from error
    rows = read_rows(RunFolder(claim.run_dir).validation)
    scores = [row["score"] for row in rows if row["step"] == claim.trial.target]
    if not scores:
        raise RunError(
            f"{claim.run_dir} has no score at step {claim.trial.target}, which its last "
            "checkpoint is beyond."
        )
    study.finish(claim, scores[-1])
    return True


def is_of_full_disk(error: Exception) -> bool:
    """Whether no trial is to blame."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


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


def trial_settings(settings: MetaTraining, claim: Claim) -> MetaTraining:
    """The settings by which a trial is begun or goes on."""
    output = dataclasses.replace(
        settings.output,
        run_dir=str(claim.run_dir),
        resume=RunFolder(claim.run_dir).config.exists(),
    )
    return dataclasses.replace(with_values(settings, claim.trial.values), output=output)
