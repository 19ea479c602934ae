"""The search for a baseline's best hyperparameters on a task, which goes on where it stopped."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from l2o.evaluation.baselines import BASELINES, DEFAULT_BASELINES, Baseline, check_baselines
from l2o.evaluation.evaluate import Start, Trainer, draw_starts
from l2o.evaluation.seen import task_signature
from l2o.evaluation.statistics import check_seeds, first_reach, median_interval
from l2o.runs.folder import atomic_write
from l2o.task import Key, Task

AT_ONCE = 4
"""Settings that train side by side, each on every seed."""

RATES = 15
"""Fewest learning rates that are tried."""

TRIALS = 16
"""Random settings of all hyperparameters."""

MOST_ROUNDS = 6
"""Most times that the search looks around the best learning rate."""

HALF_DECADE = 0.5

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
"""Parts of the run after which a schedule may end, for who is fastest to a target."""


@dataclass(frozen=True, eq=False)
class Trial:
    """Training runs at one setting.

    Attributes:
        config: Hyperparameters by name.
        final_loss: Final losses, shape (seeds,); a diverged run counts as the task's cap.
        diverged: Fraction of the runs that diverged.
        curve: Median over seeds of the probe loss, shape (probes,).
    """

    config: Mapping[str, float]
    final_loss: np.ndarray
    diverged: float
    curve: np.ndarray

    @property
    def median(self) -> float:
        """Median over seeds of the final loss, which is what tuning lowers."""
        return float(np.median(self.final_loss))

    @property
    def learning_rate(self) -> float:
        """The learning rate, of a control the factor of its updates."""
        return self.config["learning_rate"]


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a search has found.

    Attributes:
        name: Name of the baseline.
        is_tuned: Whether anything was searched for.
        trials: Every setting that was tried.
        best: The one with the lowest median final loss.
        fastest: The one whose median curve is first at the final loss of the best, at any rate and,
            of scheduled ones, any horizon up to that of the runs.
        at_grid_edge: Whether the best rate is the lowest or highest that was tried with its other
            hyperparameters, so that a better one may lie beyond.
    """

    name: str
    is_tuned: bool
    trials: Sequence[Trial]
    best: Trial
    fastest: Trial
    at_grid_edge: bool

    @property
    def beside_best(self) -> list[Trial]:
        """Trials that differ from the best in nothing but the rate, and the best."""
        return beside(self.trials, self.best)


class Trials:
    """Settings that were tried, in the order of the search, and kept in a file if there is one."""

    def __init__(
        self, trainer: Trainer, starts: Start, defaults: Mapping[str, float], path: Path | None
    ):
        self.trainer, self.starts, self.defaults, self.path = trainer, starts, defaults, path
        self.steps = np.unique([*range(0, trainer.horizon, trainer.stride), trainer.horizon])
        self.tried: list[Trial] = []
        self.identity = self._identity() if path else {}
        self.kept = read_trials(path, self.identity) if path and path.exists() else []

    def attempt(self, configs: Sequence[Mapping[str, float]]) -> None:
        """Train at some settings, `AT_ONCE` at a time; hyperparameters left out are defaults."""
        configs = [{**self.defaults, **config} for config in configs]
        for i in range(0, len(configs), AT_ONCE):
            self._attempt_at_once(configs[i : i + AT_ONCE])

    def _attempt_at_once(self, configs: Sequence[dict[str, float]]) -> None:
        known = {key_of(trial.config): trial for trial in self.kept}
        missing = [config for config in configs if key_of(config) not in known]
        if missing:
            padded = [*missing, *[missing[-1]] * (AT_ONCE - len(missing))]
            settings = {name: np.array([c[name] for c in padded]) for name in missing[0]}
            found = self.trainer.train(settings, self.starts, tested=False)
            for config, curves in zip(missing, found, strict=False):
                known[key_of(config)] = Trial(
                    config,
                    rounded(curves.final_loss),
                    float(np.mean(curves.diverged)),
                    rounded(np.median(curves.probe_loss, axis=0)),
                )
        self.tried += [known.pop(key_of(config)) for config in configs]
        used = {key_of(config) for config in configs}
        self.kept = [trial for trial in self.kept if key_of(trial.config) not in used]
        if missing and self.path:
            write_trials(self.path, self.identity, [*self.tried, *self.kept])

    def _identity(self) -> dict[str, str]:
        """What a tuning depends on, by name."""
        configs = {name: np.full(AT_ONCE, v) for name, v in self.defaults.items()}
        program = self.trainer.program(configs | {"learning_rate": np.ones(AT_ONCE)}, self.starts)
        task = self.trainer.task
        starts = hashlib.sha256(repr(float(task.loss_cap)).encode())
        for leaf in jax.tree.leaves(self.starts):
            starts.update(np.asarray(without_key_type(leaf)).tobytes())
        return {
            **{name: version(name) for name in ("l2o", "jax", "optax")},
            "data": task_signature(task),
            "starts": starts.hexdigest(),
            "program": hashlib.sha256(program.encode()).hexdigest(),
        }

    @property
    def whole(self) -> list[Trial]:
        """Trials whose schedules go to the end of the run."""
        return [trial for trial in self.tried if trial.config["horizon_fraction"] == 1.0]

    @property
    def best(self) -> Trial:
        """The trial with the lowest median final loss; of equal ones, the first."""
        return min(self.whole, key=lambda trial: trial.median)

    def rates_beside(self, trial: Trial) -> list[float]:
        """Rates that were tried with the other hyperparameters of a trial, in order."""
        return sorted(other.learning_rate for other in beside(self.tried, trial))

    def is_at_edge(self, trial: Trial) -> bool:
        """Whether no lower or no higher rate was tried with a trial's other hyperparameters."""
        rates = self.rates_beside(trial)
        return trial.learning_rate in (rates[0], rates[-1])


def key_of(config: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """A config as what can be looked up."""
    return tuple(sorted(config.items()))


def beside(trials: Sequence[Trial], trial: Trial) -> list[Trial]:
    """Those of some trials that differ from one in nothing but the rate."""

    def others(config: Mapping[str, float]) -> dict[str, float]:
        return {k: v for k, v in config.items() if k != "learning_rate"}

    return [other for other in trials if others(other.config) == others(trial.config)]


def refine(trials: Trials, *, fewest: int = 0) -> None:
    """Look around the best rate until it is interior and a finer grid gains less than its interval.

    Each round tries four rates, the nearest untried multiples of a spacing: half a decade, or the
    widest gap of a coarser grid, to begin with; a third of that before once the best lies between
    two others.

    Args:
        trials: Where to look.
        fewest: Rates to try with the best's other hyperparameters in any case.
    """
    gaps = np.diff(np.log10(trials.rates_beside(trials.best)))
    spacing = max([HALF_DECADE, *gaps.tolist()])
    for _ in range(MOST_ROUNDS):
        best = trials.best
        rates = np.log10(trials.rates_beside(best))
        if not trials.is_at_edge(best):
            spacing /= 3.0
        around = [np.log10(best.learning_rate) + k * spacing for k in (1, -1, 2, -2, 3, -3, 4, -4)]
        untried = [rate for rate in around if np.min(np.abs(rates - rate)) > 1e-6][:AT_ONCE]
        trials.attempt([{**best.config, "learning_rate": float(10.0**rate)} for rate in untried])
        gains = trials.best.median < median_interval(best.final_loss).low
        enough = len(trials.rates_beside(trials.best)) >= fewest
        if spacing < HALF_DECADE and enough and not gains and not trials.is_at_edge(trials.best):
            return


def draw_around(trials: Trials, baseline: Baseline, number: int) -> None:
    """Try random settings: rates within half a decade of the best, all else within its range."""
    from scipy.stats import qmc

    if not number or not baseline.space:
        return
    best = trials.best.learning_rate
    # A Sobol sequence covers the ranges evenly; its length is a power of two.
    sampler = qmc.Sobol(1 + len(baseline.space), rng=np.random.default_rng(0))
    draws = sampler.random_base2(int(np.ceil(np.log2(number))))
    trials.attempt(
        [
            {"learning_rate": float(best * 10.0 ** (row[0] - 0.5))}
            | {
                name: float(values.at(x))
                for (name, values), x in zip(baseline.space.items(), row[1:], strict=True)
            }
            for row in draws[:number]
        ]
    )


def tune_one(name: str, baseline: Baseline, trials: Trials, *, num_random: int = TRIALS) -> Tuning:
    """Search for the best setting of a baseline: rates, then random settings, then rates again."""
    trials.attempt([{"learning_rate": rate} for rate in baseline.learning_rates])
    if baseline.is_tuned:
        refine(trials, fewest=RATES)
        first = trials.best
        draw_around(trials, baseline, num_random)
        if trials.best is not first:
            refine(trials)
    best = trials.best
    at_edge = baseline.is_tuned and trials.is_at_edge(best)
    if baseline.is_scheduled:
        rates = [best.learning_rate, *([2.0 * best.learning_rate] if baseline.is_tuned else [])]
        trials.attempt(
            [
                {**best.config, "horizon_fraction": fraction, "learning_rate": rate}
                for rate in rates
                for fraction in FRACTIONS
            ]
        )
    # The best's own curve ends at its target, so one of them reaches it.
    reach = [first_reach(trials.steps, trial.curve, best.curve[-1]) for trial in trials.tried]
    fastest = trials.tried[int(np.argmin(reach))]
    return Tuning(name, baseline.is_tuned, trials.tried, best, fastest, at_edge)


def tune(
    key: Key,
    task: Task,
    *,
    horizon: int,
    num_seeds: int,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    learning_rates: Sequence[float] | None = None,
    num_random: int = TRIALS,
    cache: str | Path | None = None,
) -> dict[str, Tuning]:
    """Tune baselines for a task.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> key, task = l2o.stream(0, "evaluation"), rotated_quadratic(2)
    >>> found = tune(key, task, horizon=4, num_seeds=8, baselines=["sgdm"], num_random=0)
    >>> len(found["sgdm"].trials) >= RATES
    True

    Args:
        key: Random key.
        task: Task to train.
        horizon: Inner steps of each run.
        num_seeds: Number of runs at each setting, at least 8.
        baselines: Names in `BASELINES`.
        learning_rates: Rates to begin at, in place of each baseline's own, at least two.
        num_random: Random settings of all hyperparameters of each baseline.
        cache: Folder that keeps what was tried; a search that was stopped goes on there.

    Raises:
        ValueError: If a number is out of range, a baseline is unknown, or what the cache keeps is
            of other versions, another task or other data.
    """
    check_baselines(baselines)
    check_seeds(num_seeds)
    check_trials(num_random)
    starts = draw_starts(key, task, num_seeds)
    tunings = {}
    for name in baselines:
        baseline = with_rates(BASELINES[name], learning_rates)
        path = cache_file(cache, key, task, name, horizon, num_seeds) if cache else None
        trials = Trials(trainer_of(task, baseline, horizon), starts, baseline.defaults, path)
        tunings[name] = tune_one(name, baseline, trials, num_random=num_random)
    return tunings


def check_trials(num_random: int, argument: str = "num_random") -> None:
    """Raise a `ValueError` unless there can be so many random settings."""
    if num_random < 0:
        raise ValueError(
            f"`{argument}` must be at least 0; got {num_random}. Try {argument}={TRIALS}."
        )


def trainer_of(
    task: Task, baseline: Baseline, horizon: int, probe_every: int | None = None
) -> Trainer:
    """Make a trainer whose settings are configs of a baseline."""
    return Trainer(
        task,
        lambda config: baseline.make(config, horizon),
        horizon=horizon,
        probe_every=probe_every,
    )


def with_rates(baseline: Baseline, learning_rates: Sequence[float] | None) -> Baseline:
    """Let a baseline that is tuned begin at other rates.

    Raises:
        ValueError: If there are fewer than two, or they do not increase from above zero.
    """
    if learning_rates is None or not baseline.is_tuned:
        return baseline
    rates = np.asarray(learning_rates, np.float64)
    if rates.size < 2 or not (rates[0] > 0 and np.all(np.diff(rates) > 0) and rates[-1] < np.inf):
        raise ValueError(
            "`learning_rates` must be positive and increasing, at least two to tune; got "
            f"{list(learning_rates)}. Try learning_rates=(1e-3, 1e-2, 1e-1)."
        )
    return replace(baseline, learning_rates=tuple(rates.tolist()))


def without_key_type(leaf: jax.Array) -> jax.Array:
    """The numbers of a typed random key; another array as it is."""
    is_key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def cache_file(
    cache: str | Path, key: Key, task: Task, name: str, horizon: int, num_seeds: int
) -> Path:
    """The file of a tuning."""
    digest = hashlib.sha256(np.asarray(without_key_type(key)).tobytes()).hexdigest()[:8]
    return Path(cache) / f"{task.name}-{horizon}-{num_seeds}-{digest}" / f"{name}.json"


def rounded(values: np.ndarray) -> np.ndarray:
    """Six significant digits, as the file keeps them, so that a resumed search decides alike."""
    return np.array([float(f"{value:.6g}") for value in values])


def write_trials(path: Path, identity: Mapping[str, str], trials: Sequence[Trial]) -> None:
    """Write a tuning's file, as a whole or not at all."""
    rows = [
        {
            "config": dict(trial.config),
            "final_loss": trial.final_loss.tolist(),
            "diverged": trial.diverged,
            "curve": trial.curve.tolist(),
        }
        for trial in trials
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    content = f'{{"identity": {json.dumps(dict(identity))},\n"trials": [\n{lines}\n]}}\n'
    atomic_write(path, content.encode())


def read_trials(path: Path, identity: Mapping[str, str]) -> list[Trial]:
    """Read a tuning's file.

    Raises:
        ValueError: If it cannot be read, or is of other versions, another task or other data.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        trials = [
            Trial(
                row["config"],
                np.array(row["final_loss"]),
                row["diverged"],
                np.array(row["curve"]),
            )
            for row in content["trials"]
        ]
        found = dict(content["identity"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"`cache` must hold tunings; got {path}, which cannot be read. Delete it."
        ) from error
    for name, value in identity.items():
        if found.get(name) != value:
            raise ValueError(
                f"`cache` must be of these versions, task, data and method; got {path}, whose "
                f"{name} is {str(found.get(name))[:12]}, not {value[:12]}. Try another folder, or "
                "delete it."
            )
    return trials
