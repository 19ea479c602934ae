"""A search on disk, which several workers share: claims, jobs and scores of trials.

    OUT/config.json        what the search is
    OUT/.lock              locked while a worker decides what to do, or writes down a score
    OUT/trials/007.json    values, target, scores; written before the trial is trained
    OUT/trials/007.lock    locked while a worker trains it
    OUT/trials/007/        run folder of its meta-training

Locks are those of `l2o.runs.locks`, so those of a worker that was killed are free, and another one
goes on with its trial from the run folder's last checkpoint. Nothing else is shared: Optuna's
samplers are asked with a study in memory that is made of these files.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from l2o.runs.folder import atomic_write, flatten
from l2o.runs.locks import locked, try_lock
from l2o.search.halving import Trial, next_job
from l2o.search.space import Setting, Value

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

SamplerName = Literal["tpe", "random"]

FEWEST_SCORED = 8
"""Trials that are drawn at random before a model of them is."""


class Claim(NamedTuple):
    """A trial that a worker has taken.

    Attributes:
        trial: The trial, with the rung that it is to reach as its target.
        run_dir: Run folder of its meta-training.
    """

    trial: Trial
    run_dir: Path


@dataclass(frozen=True, eq=False)
class Study:
    """A search on disk.

    Attributes:
        folder: Folder of the search.
        space: Settings that are searched over.
        start: Values of the first trial; None to draw them, too.
        rungs: Outer steps at which trials are scored.
        eta: The best 1/eta of a rung go on.
        budget: Inner steps of all trials.
        sampler: Name of what draws values: "tpe", or "random".
        seed: Seed of what is drawn.
        cost: Function from values to the inner steps of an outer step.
    """

    folder: Path
    space: Sequence[Setting]
    start: Mapping[str, Value] | None
    rungs: Sequence[int]
    eta: int
    budget: float
    sampler: SamplerName
    seed: int
    cost: Callable[[Mapping[str, Value]], int]

    def trials(self) -> list[Trial]:
        """All trials so far, by number."""
        return read_trials(self.folder)

    def run_dir(self, number: int) -> Path:
        """Run folder of a trial."""
        return self.folder / "trials" / f"{number:03}"

    @contextlib.contextmanager
    def claimed(self) -> Iterator[Claim | None]:
        """Take the next trial that has something to do, until the context is left.

        A trial whose worker has ended comes first. None if there is nothing to do now.
        """
        with contextlib.ExitStack() as stack:
            with locked(self.folder / ".lock"):
                claim = self._claim(stack)
            yield claim

    def _claim(self, stack: contextlib.ExitStack) -> Claim | None:
        trials = self.trials()
        for trial in trials:
            if trial.is_busy and self._take(trial.number, stack):
                return Claim(trial, self.run_dir(trial.number))
        values = self.draw(trials)
        cost = self.cost(values)
        job = next_job(trials, self.rungs, eta=self.eta, budget=self.budget, cost=cost)
        if job is None:
            return None
        new = job.trial or Trial(len(trials), values, cost, job.target)
        trial = dataclasses.replace(new, target=job.target)
        if not self._take(trial.number, stack):  # by whom has just reached a rung with it
            return None
        self._write(trial)
        return Claim(trial, self.run_dir(trial.number))

    def _take(self, number: int, stack: contextlib.ExitStack) -> bool:
        file = try_lock(self.run_dir(number).with_suffix(".lock"))
        if file is not None:
            stack.enter_context(file)
        return file is not None

    def finish(self, claim: Claim, score: float) -> None:
        """Write down that a trial has reached its target."""
        trial = claim.trial
        scores = {**trial.scores, trial.target: score}
        with locked(self.folder / ".lock"):
            self._write(dataclasses.replace(trial, scores=scores))

    def fail(self, claim: Claim, error: str) -> None:
        """Write down that a trial cannot go on."""
        with locked(self.folder / ".lock"):
            self._write(dataclasses.replace(claim.trial, error=error))

    def _write(self, trial: Trial) -> None:
        path = self.run_dir(trial.number).with_suffix(".json")
        atomic_write(path, json.dumps(dataclasses.asdict(trial), indent=1).encode() + b"\n")

    def is_over(self) -> bool:
        """Whether nothing is being done and nothing is left to do."""
        trials = self.trials()
        if any(trial.is_busy for trial in trials):
            return False
        cost = self.cost(self.draw(trials))
        job = next_job(trials, self.rungs, eta=self.eta, budget=self.budget, cost=cost)
        return job is None

    def draw(self, trials: Sequence[Trial]) -> dict[str, Value]:
        """Draw the values of a new trial, which depend on `trials` and the seed alone."""
        import optuna

        if not trials and self.start is not None:
            return dict(self.start)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(
            direction="maximize", sampler=make_sampler(self.sampler, self.seed, len(trials))
        )
        study.add_trials([self._frozen(trial) for trial in trials])
        return study.ask({s.name: s.distribution for s in self.space}).params

    def _frozen(self, trial: Trial) -> "FrozenTrial":
        """A trial as Optuna knows it; one that waits at a rung counts as pruned there.

        One that failed has the lowest score, 0, at the first rung, wherever it was: samplers prefer
        who has come further.
        """
        from optuna.trial import TrialState, create_trial

        scores = {self.rungs[0]: 0.0} if trial.error else dict(trial.scores)
        state = TrialState.PRUNED if scores else TrialState.RUNNING
        if self.rungs[-1] in scores:
            state = TrialState.COMPLETE
        inside = {s.name: s.distribution for s in self.space if s.holds(trial.values[s.name])}
        return create_trial(
            state=state,
            value=scores.get(self.rungs[-1]),
            params={name: trial.values[name] for name in inside},
            distributions=inside,
            intermediate_values=scores,
        )


def make_sampler(name: SamplerName, seed: int, number: int) -> "BaseSampler":
    """Make what draws the values of the trial of a number."""
    import numpy as np
    from optuna.samplers import RandomSampler, TPESampler

    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    if name == "random":
        return RandomSampler(seed=own)
    return TPESampler(seed=own, n_startup_trials=FEWEST_SCORED, constant_liar=True)


def read_trials(folder: Path) -> list[Trial]:
    """Read the trials of a search, by number; none if there are none yet.

    Raises:
        ValueError: If one is damaged.
    """
    paths = [p for p in folder.glob("trials/*.json") if re.fullmatch(r"\d{3,}", p.stem)]
    return sorted(map(_read_trial, paths), key=lambda trial: trial.number)


def _read_trial(path: Path) -> Trial:
    try:
        content = json.loads(path.read_bytes())
        scores = {int(step): score for step, score in content.pop("scores").items()}
        return Trial(**content, scores=scores)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"`out` must hold a search; got {path}, which cannot be read ({error}). "
            "Choose another --out."
        ) from error


def open_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Begin a search in a new or empty folder, or go on with the one that is there.

    Args:
        folder: Folder of the search.
        config: What the search is: what determines its trials, JSON-able.

    Raises:
        ValueError: If the folder holds something else, another search, or cannot be used.
    """
    path, config = folder / "config.json", json.loads(json.dumps(config))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(p.name for p in folder.iterdir() if p.name[0] != ".")
        if others and not path.exists() and others != ["trials"]:
            raise not_a_search(folder, others[0])
        with locked(folder / ".lock"):
            if not path.exists():
                (folder / "trials").mkdir(exist_ok=True)
                atomic_write(path, json.dumps(config, indent=1).encode() + b"\n")
            there = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise not_a_search(folder, f"a damaged {path.name}") from error
    except OSError as error:
        raise ValueError(
            f"`out` must be a folder that can be written and locked; got {folder} "
            f"({error.strerror or error}). Choose another --out."
        ) from error
    if not isinstance(there, dict) or set(there) != set(config):
        raise not_a_search(folder, f"{path.name} of something else")
    old, new = flatten(there), flatten(config)
    show = lambda fields, name: json.dumps(fields[name]) if name in fields else "not set"
    changed = [
        f"{name}={show(old, name)} (now {show(new, name)})"
        for name in dict.fromkeys((*old, *new))
        if show(old, name) != show(new, name)
    ]
    if changed:
        raise ValueError(
            f"`out` must not belong to another search; got {folder}, which has "
            f"{', '.join(changed)}. Choose another --out, or type what it was begun with."
        )


def not_a_search(folder: Path, holds: str) -> ValueError:
    """The error for a folder that holds something else."""
    return ValueError(
        f"`out` must be a new folder or that of a search; got {folder}, which holds {holds}. "
        "Choose another --out."
    )
