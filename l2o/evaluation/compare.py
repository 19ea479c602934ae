"""A learned optimizer beside tuned rivals: one row of numbers and the curves for each task."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from l2o.evaluation.baseline import Baseline, scaled
from l2o.evaluation.baselines import BASELINES, DEFAULT_BASELINES, check_baselines
from l2o.evaluation.evaluate import Optimizer, evaluate
from l2o.evaluation.seen import check_unseen, is_seen
from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import (
    Interval,
    check_seeds,
    first_reach,
    median_interval,
    speedups,
    steps_to,
    targets,
)
from l2o.evaluation.training import Curves, Trainer
from l2o.evaluation.trials import Trials, cache_file
from l2o.evaluation.tuning import TRIALS, Tuning, check_trials, prepare, tune_one, with_rates
from l2o.task import Key, Task

Role = Literal["learned", "baseline", "control"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A learned optimizer beside tuned rivals on one task, ready for JSON.

    Attributes:
        summary: Row of the task in `report.json`; `l2o.evaluation.tables.DEFINITIONS` says what its
            fields mean.
        curves: Curves of probe losses: "steps", and for each of "entrants" its "name" and "role",
            and the "median", "low" and "high" quartile over seeds.
        grids: Tuned rates: for each rival its "name", the "learning_rates" tried with the
            hyperparameters of the best, the one "chosen", and the "median", "low" and "high"
            quartile of the final loss over tuning seeds at each.
    """

    summary: Mapping[str, Any]
    curves: Mapping[str, Any]
    grids: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class Rival:
    """A baseline or control on the reporting seeds.

    Attributes:
        tuning: How it was tuned.
        curves: Curves at its best setting.
        fastest: Curves at the setting that is first at the best's final loss.
    """

    tuning: Tuning
    curves: Curves
    fastest: Curves


def compare(
    key: Key,
    task: Task,
    learned: Optimizer,
    *,
    horizon: int,
    num_seeds: int,
    controls: Mapping[str, Optimizer] | None = None,
    seen: AbstractSet[str] = frozenset(),
    validated: AbstractSet[str] = frozenset(),
    allow_seen: bool = False,
    probe_every: int | None = None,
    learning_rates: Sequence[float] | None = None,
    baselines: Sequence[str] = DEFAULT_BASELINES,
    num_random: int = TRIALS,
    cache: str | Path | None = None,
    on_tried: Callable[[str, Trials], None] = lambda name, trials: None,
) -> Comparison:
    """Compare a learned optimizer with baselines and controls, all of them tuned.

    Rivals are tuned on seeds of their own, twice as many as are reported on (`prepare`); then
    everything runs on the same reporting seeds. Of a control the factor of its updates is
    tuned, as the rate of a baseline is, and the horizon that it is told. The best baseline is
    the one with the lowest median final loss on the finalists' seeds; the speed-up over it is
    over whichever baseline and setting is first at its final loss on the tuning seeds. Medians
    are over seeds, with intervals that cover in at least 95 % of cases.

    >>> import l2o, optax
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> task, key = rotated_quadratic(2), l2o.stream(0, "evaluation")
    >>> rivals = {"baselines": ["sgdm"], "num_random": 0}
    >>> found = l2o.compare(key, task, optax.sgd(0.1), horizon=4, num_seeds=8, **rivals)
    >>> [baseline["name"] for baseline in found.summary["baselines"]]
    ['sgdm']

    Args:
        key: Random key from `stream(seed, "evaluation")`.
        task: Task to train.
        learned: Learned optimizer, or a function that makes it from `horizon=`.
        horizon: Inner steps of each run.
        num_seeds: Number of runs reported on, for each optimizer; at least 8, and 16 for intervals
            that cover as often as they say.
        controls: Further optimizers to report on, for instance the untrained design; functions are
            given a traced `horizon`, a part of it where shorter runs are tried for the speed-up.
        seen: Names, signatures or both of the tasks that an optimizer was meta-trained on; see
            `l2o.evaluation.seen`.
        validated: The same of tasks by which theta was chosen, as its file's `validated_on` says.
        allow_seen: Whether to accept such a task, and mark it.
        probe_every: Inner steps between probes, as in `evaluate`.
        learning_rates: Rates where tuning begins, in place of each rival's own; at least two.
        baselines: Names in `l2o.evaluation.baselines.BASELINES`.
        num_random: Random settings of all hyperparameters of each baseline.
        cache: Folder that keeps what tuning has tried of the baselines.
        on_tried: Function called with the name of a rival and its trials so far, after each lot.

    Raises:
        ValueError: As `evaluate` and `tune`, if there are fewer than 8 seeds, or if a control has
            the name of another optimizer.
    """
    check_unseen(task, seen, allow_seen)
    check_unseen(task, validated, allow_seen, "validated on")
    check_seeds(num_seeds)
    check_trials(num_random)
    check_baselines(baselines)
    controls = controls or {}
    taken = sorted(set(controls) & {"learned", *BASELINES})
    if taken:
        raise ValueError(
            f"`controls` must have names of their own; got {taken[0]}. Try {taken[0]}_control."
        )
    designs = {name: BASELINES[name] for name in baselines}
    designs |= {name: scaled(control) for name, control in controls.items()}
    designs = {name: with_rates(design, learning_rates) for name, design in designs.items()}
    for name in controls:
        check_control(name, designs[name], task, horizon)
    k_tuning, k_report = jax.random.split(key)
    tuning_starts = draw_starts(k_tuning, task, 2 * num_seeds)
    searches = [
        prepare(
            task,
            name,
            design,
            tuning_starts,
            horizon=horizon,
            probe_every=probe_every,
            path=cache_file(cache, k_tuning, task, name, horizon, num_seeds)
            if cache and name not in controls
            else None,
        )
        for name, design in designs.items()
    ]
    (ours,) = evaluate(
        k_report,
        task,
        {"learned": learned},
        horizon=horizon,
        num_seeds=num_seeds,
        probe_every=probe_every,
    ).values()
    starts = draw_starts(k_report, task, num_seeds)
    for search in searches:
        search.trials.on_tried = functools.partial(on_tried, search.name)
    rivals = {
        search.name: report_on(
            tune_one(search, num_random=num_random), search.trials.trainer, starts
        )
        for search in searches
    }
    return Comparison(
        summary={
            "task": task.name,
            "seen": allow_seen and is_seen(task, seen),
            "validated": allow_seen and is_seen(task, validated),
            "steps": horizon,
            "num_seeds": num_seeds,
            **summarise(ours, rivals, controls.keys()),
        },
        curves=bands(ours, rivals, controls.keys()),
        grids=[grid_band(rival.tuning) for rival in rivals.values() if rival.tuning.is_tuned],
    )


def check_control(name: str, control: Baseline, task: Task, horizon: int) -> None:
    """Raise a `ValueError` unless a control can be told a horizon that is traced."""

    def first_update(key: Key, fraction: jax.Array) -> optax.Updates:
        params = task.init(key, task.sample(key))
        config = {"learning_rate": 1.0, "horizon_fraction": fraction}
        tx = optax.with_extra_args_support(control.make(config, horizon))
        return tx.update(params, tx.init(params), params, value=jnp.float32(1.0))[0]

    try:
        jax.eval_shape(first_update, jax.random.key(0), jnp.float32(1.0))
    except TypeError as error:  # JAX's own among them
        reason = str(error).split("\n")[0].rstrip(".")
        raise ValueError(
            f"`controls` must be transformations, or functions of a traced `horizon`; got {name}, "
            f"which fails ({reason}). Try the transformation that it makes, for instance "
            f"{name}(horizon={horizon})."
        ) from error


def report_on(tuning: Tuning, trainer: Trainer, starts: Start) -> Rival:
    """Train a rival at its best and at its fastest setting on the reporting seeds."""

    def train(config: Mapping[str, float], *, timed: bool) -> Curves:
        settings = {name: np.array([value]) for name, value in config.items()}
        (curves,) = trainer.train(settings, starts, timed=timed)
        return curves

    best = train(tuning.best.config, timed=True)
    is_same = tuning.fastest.config == tuning.best.config
    return Rival(tuning, best, best if is_same else train(tuning.fastest.config, timed=False))


def summarise(
    learned: Curves, rivals: Mapping[str, Rival], controls: AbstractSet[str]
) -> dict[str, Any]:
    """Compute the figures of a row: learned optimizer, best baseline, then every entrant."""
    baselines = {name: rival for name, rival in rivals.items() if name not in controls}
    best = min(baselines.values(), key=lambda rival: rival.tuning.again.median)
    fastest = first_at(targets(best.tuning.best.curve[None])[0], learned.steps, baselines.values())
    entries = {name: entry(name, rival, learned) for name, rival in rivals.items()}
    return {
        **{f"learned_{k}": v for k, v in of_curves(learned).items()},
        "best_baseline": best.tuning.name,
        **{f"best_baseline_{k}": v for k, v in of_curves(best.curves).items()},
        **of_speedups(
            speedups(learned.steps, learned.probe_loss, best.curves.probe_loss, fastest.probe_loss)
        ),
        "baselines": [entries[name] for name in baselines],
        "controls": [entries[name] for name in controls],
    }


def first_at(goal: float, steps: np.ndarray, rivals: Collection[Rival]) -> Curves:
    """Curves of the rival and setting whose median over tuning seeds is first at a loss."""
    settings = [
        (trial, curves)
        for rival in rivals
        for trial, curves in (
            (rival.tuning.best, rival.curves),
            (rival.tuning.fastest, rival.fastest),
        )
    ]
    return min(settings, key=lambda pair: first_reach(steps, pair[0].curve, goal))[1]


def entry(name: str, rival: Rival, learned: Curves) -> dict[str, Any]:
    """Compute the figures of a baseline or control, and the learned optimizer's beside it."""
    tuning, curves, fastest = rival.tuning, rival.curves, rival.fastest.probe_loss
    goals = targets(curves.probe_loss)
    return {
        "name": name,
        "is_tuned": tuning.is_tuned,
        "hyperparameters": dict(tuning.best.config),
        "fastest_hyperparameters": dict(tuning.fastest.config),
        "at_grid_edge": tuning.at_grid_edge,
        "trials": len(tuning.trials),
        **of_curves(curves),
        **of_speedups(speedups(learned.steps, learned.probe_loss, curves.probe_loss, fastest)),
        "steps_of_learned": steps_to(learned.steps, learned.probe_loss, goals).tolist(),
        "steps_of_fastest": steps_to(learned.steps, fastest, goals).tolist(),
    }


def of_speedups(times: np.ndarray) -> dict[str, Any]:
    """Compute the median speed-up, and how many seeds reached the target, from those by seed."""
    reached = times > 0.0
    return {
        **with_interval("speedup", median_interval(times)),
        "speedup_by_seed": times.tolist(),
        "reached": float(np.mean(reached)),
        "speedup_where_reached": float(np.median(times[reached])) if reached.any() else None,
    }


def of_curves(curves: Curves) -> dict[str, Any]:
    """Compute an entrant's own figures: the median of the final loss and how single seeds end."""
    return {
        **with_interval("final_loss", median_interval(curves.final_loss)),
        "final_loss_mean": float(np.mean(curves.final_loss)),
        "final_loss_worst_tenth": float(np.quantile(curves.final_loss, 0.9)),
        "final_loss_by_seed": curves.final_loss.tolist(),
        "diverged": float(np.mean(curves.diverged)),
        "valid": {k: with_interval("median", interval_or_nan(v)) for k, v in curves.valid.items()},
        "valid_by_seed": {k: v.tolist() for k, v in curves.valid.items()},
        "test": {k: with_interval("median", interval_or_nan(v)) for k, v in curves.test.items()},
        "test_by_seed": {k: v.tolist() for k, v in curves.test.items()},
        "seconds_per_step": curves.seconds_per_step,
    }


def interval_or_nan(values: np.ndarray) -> Interval:
    """Median and interval, or NaN if a run that diverged has a metric that is not finite."""
    return median_interval(values) if np.all(np.isfinite(values)) else Interval(*[np.nan] * 3)


def with_interval(name: str, interval: Interval) -> dict[str, float]:
    """Put the median under `name`, the interval under `name_low` and `name_high`."""
    return {name: interval.median, f"{name}_low": interval.low, f"{name}_high": interval.high}


def bands(
    learned: Curves, rivals: Mapping[str, Rival], controls: AbstractSet[str]
) -> dict[str, Any]:
    """Median and quartiles of every entrant's probe loss."""

    def band(name: str, role: Role, curves: Curves) -> dict[str, Any]:
        return {"name": name, "role": role, **quartiles(curves.probe_loss, axis=0)}

    return {
        "steps": learned.steps.tolist(),
        "entrants": [
            band("learned", "learned", learned),
            *(
                band(name, "control" if name in controls else "baseline", rival.curves)
                for name, rival in rivals.items()
            ),
        ],
    }


def grid_band(tuning: Tuning) -> dict[str, Any]:
    """Median and quartiles of the final loss at every rate tried with the best's other values."""
    trials = sorted(tuning.beside_best, key=lambda trial: trial.learning_rate)
    return {
        "name": tuning.name,
        "learning_rates": [trial.learning_rate for trial in trials],
        "chosen": tuning.best.learning_rate,
        **quartiles(np.stack([trial.final_loss for trial in trials]), axis=1),
    }


def quartiles(losses: np.ndarray, *, axis: int) -> dict[str, list[float]]:
    """Median and quartiles along an axis, with six significant digits."""
    names = ("low", "median", "high")
    values = np.quantile(losses, (0.25, 0.5, 0.75), axis=axis)
    return {k: [float(f"{v:.6g}") for v in row] for k, row in zip(names, values, strict=True)}
