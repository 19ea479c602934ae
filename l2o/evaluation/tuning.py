"""The search for a baseline's best hyperparameters on a task, which goes on where it stopped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from l2o.evaluation.baseline import Baseline
from l2o.evaluation.baselines import BASELINES, DEFAULT_BASELINES, check_baselines
from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import check_seeds, first_reach, median_interval, targets
from l2o.evaluation.training import Trainer
from l2o.evaluation.trials import AT_ONCE, Trial, Trials, beside, cache_file
from l2o.task import Key, Task

RATES = 15
"""Fewest learning rates that are tried."""

TRIALS = 16
"""Random settings of all hyperparameters."""

FINALISTS = 4
"""Settings that are told apart on other seeds."""

MOST_ROUNDS = 6
"""Most times that the search looks around the best learning rate."""

HALF_DECADE = 0.5

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
"""Parts of the run after which a schedule may end, for who is fastest to a target."""


@dataclass(frozen=True, eq=False)
class Tuning:
    """What a search has found.

    Attributes:
        name: Name of the baseline.
        is_tuned: Whether anything was searched for.
        trials: Every setting that was tried.
        best: The finalist with the lowest median final loss on seeds other than the search's.
        again: The same setting on those seeds, by which baselines are compared.
        fastest: The one whose median curve is first at the final loss of the best, at any rate and,
            of scheduled ones, any horizon up to that of the runs.
        at_grid_edge: Whether the best rate is the lowest or highest that was tried with its other
            hyperparameters, so that a better one may lie beyond.
    """

    name: str
    is_tuned: bool
    trials: Sequence[Trial]
    best: Trial
    again: Trial
    fastest: Trial
    at_grid_edge: bool

    @property
    def beside_best(self) -> list[Trial]:
        """Trials that differ from the best in nothing but the rate, and the best."""
        return beside(self.trials, self.best)


@dataclass(frozen=True, eq=False)
class Search:
    """A baseline and what was tried of it, which grows.

    Attributes:
        name: Name of the baseline.
        baseline: What is tuned.
        trials: Settings on the seeds of the search.
        again: The same for the finalists, on as many other seeds.
    """

    name: str
    baseline: Baseline
    trials: Trials
    again: Trials


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


def choose(trials: Trials, again: Trials) -> tuple[Trial, Trial]:
    """Train the finalists on other seeds, and return the one that is best there, on both.

    The lowest of many medians is low by luck, too: where a setting ends badly on every other seed,
    some seeds are mostly good ones. Finalists are the best of the search and the lowest of those
    whose rate lies between two others that were tried with their other hyperparameters.
    """
    inside = [t for t in trials.whole if t is trials.best or not trials.is_at_edge(t)]
    finalists = sorted(inside, key=lambda trial: trial.median)[:FINALISTS]
    again.attempt([trial.config for trial in finalists])
    pairs = zip(finalists, again.tried, strict=True)
    return min(pairs, key=lambda pair: (pair[1].median, pair[0].median))


def tune_one(search: Search, *, num_random: int = TRIALS, fewest_rates: int = RATES) -> Tuning:
    """Search for the best setting: rates, random settings, rates around the best, finalists."""
    name, baseline, trials = search.name, search.baseline, search.trials
    trials.attempt([{"learning_rate": rate} for rate in baseline.learning_rates])
    if baseline.is_tuned:
        refine(trials, fewest=fewest_rates)
        first = trials.best
        draw_around(trials, baseline, num_random)
        if trials.best is not first:
            refine(trials)
    best, again = choose(trials, search.again)
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
    (goal,) = targets(best.curve[None])
    reach = [first_reach(trials.steps, trial.curve, goal) for trial in trials.tried]
    fastest = trials.tried[int(np.argmin(reach))]
    return Tuning(name, baseline.is_tuned, trials.tried, best, again, fastest, at_edge)


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
    on_tried: Callable[[Trials], None] = lambda trials: None,
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
        num_seeds: Number of runs at each setting, at least 8; finalists have as many again.
        baselines: Names in `BASELINES`.
        learning_rates: Rates to begin at, in place of each baseline's own, at least two.
        num_random: Random settings of all hyperparameters of each baseline.
        cache: Folder that keeps what was tried; a search that was stopped goes on there.
        on_tried: Function called with what was tried whenever it has grown.

    Raises:
        ValueError: If a number is out of range, a baseline is unknown, or what the cache keeps is
            of other versions, another task or other data.
    """
    check_baselines(baselines)
    check_seeds(num_seeds)
    check_trials(num_random)
    starts = draw_starts(key, task, 2 * num_seeds)
    tunings = {}
    for name in baselines:
        baseline = with_rates(BASELINES[name], learning_rates)
        path = cache_file(cache, key, task, name, horizon, num_seeds) if cache else None
        search = prepare(task, name, baseline, starts, horizon=horizon, path=path)
        search.trials.on_tried = on_tried
        tunings[name] = tune_one(search, num_random=num_random)
    return tunings


def prepare(
    task: Task,
    name: str,
    baseline: Baseline,
    starts: Start,
    *,
    horizon: int,
    probe_every: int | None = None,
    path: Path | None = None,
) -> Search:
    """Prepare a search, with what its file keeps of it.

    Args:
        task: Task to train.
        name: Name of the baseline.
        baseline: What is tuned.
        starts: Starts of the search in the first half, of finalists in the second.
        horizon: Inner steps of each run.
        probe_every: Inner steps between probes, as in `evaluate`.
        path: File that keeps what was tried; finalists have another beside it.

    Raises:
        ValueError: If what the file keeps is of other versions, another task or other data.
    """
    half = len(starts.key) // 2
    first, second = (
        jax.tree.map(lambda x, part=part: x[part], starts)
        for part in (slice(half), slice(half, None))
    )
    trainer = trainer_of(task, baseline, horizon, probe_every)
    trials = Trials(trainer, first, baseline.defaults, path)
    other = path.with_name(f"{path.stem}_finalists.json") if path else None
    return Search(name, baseline, trials, trials.on(second, other))


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
