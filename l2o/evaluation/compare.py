"""A learned optimizer beside tuned baselines: one row of numbers and the curves for each task."""

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import numpy as np

from l2o.evaluation.baselines import (
    BASELINES,
    DEFAULT_BASELINES,
    LEARNING_RATES,
    Baseline,
    Tuning,
    tune,
)
from l2o.evaluation.evaluate import Curves, Optimizer, evaluate
from l2o.evaluation.seen import check_unseen, is_seen
from l2o.evaluation.statistics import Interval, median_interval, speedups
from l2o.task import Key, Task

Role = Literal["learned", "baseline", "control"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A learned optimizer beside tuned baselines on one task, ready for JSON.

    Attributes:
        summary: Row of the task in `report.json`; `l2o.evaluation.html.DEFINITIONS` says what its
            fields mean.
        curves: Curves of probe losses: "steps", and for each of "entrants" its "name" and "role",
            and the "median", "low" and "high" quartile over seeds.
        grids: Grids of final losses: for each baseline its "name", "learning_rates", the one
            "chosen", and the "median", "low" and "high" quartile over tuning seeds at each rate.
    """

    summary: Mapping[str, Any]
    curves: Mapping[str, Any]
    grids: Sequence[Mapping[str, Any]]


def compare(
    key: Key,
    task: Task,
    learned: Optimizer,
    *,
    horizon: int,
    num_seeds: int,
    controls: Mapping[str, Optimizer] | None = None,
    seen: AbstractSet[str] = frozenset(),
    allow_seen: bool = False,
    probe_every: int | None = None,
    learning_rates: Sequence[float] = LEARNING_RATES,
    baselines: Sequence[str] = DEFAULT_BASELINES,
) -> Comparison:
    """Compare a learned optimizer with baselines, each at its best learning rate.

    Rates are tuned on seeds of their own, as many as are reported on; then everything runs on the
    same reporting seeds. The best baseline is the one with the lower median final loss on the
    tuning seeds. Medians are over seeds, with 95 % bootstrap intervals.

    >>> import l2o, optax
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> task, key = rotated_quadratic(2), l2o.stream(0, "evaluation")
    >>> sgd, grid = optax.sgd(0.1), (0.01, 0.1)
    >>> found = l2o.compare(key, task, sgd, horizon=4, num_seeds=2, learning_rates=grid)
    >>> [baseline["name"].split(" ")[0] for baseline in found.summary["baselines"]]
    ['adam', 'adam_cosine']

    Args:
        key: Random key from `stream(seed, "evaluation")`.
        task: Task to train.
        learned: Learned optimizer, or a function that makes it from `horizon=`.
        horizon: Inner steps of each run.
        num_seeds: Number of runs reported on, for each optimizer.
        controls: Further optimizers to report on, for instance the untrained design.
        seen: Names, signatures or both of the tasks that an optimizer was meta-trained on; see
            `l2o.evaluation.seen`.
        allow_seen: Whether to accept such a task, and mark it.
        probe_every: Inner steps between probes, as in `evaluate`.
        learning_rates: Grid of learning rates of the baselines.
        baselines: Names in `l2o.evaluation.baselines.BASELINES`.

    Raises:
        ValueError: As `evaluate` and `tune`, or if a control has the name of another optimizer.
    """
    check_unseen(task, seen, allow_seen)
    controls = controls or {}
    taken = sorted(set(controls) & {"learned", *BASELINES})
    if taken:
        raise ValueError(
            f"`controls` must have names of their own; got {taken[0]}. Try {taken[0]}_control."
        )
    k_tuning, k_report = jax.random.split(key)
    tunings = tune(
        k_tuning,
        task,
        horizon=horizon,
        num_seeds=num_seeds,
        learning_rates=learning_rates,
        baselines=baselines,
    )
    tuned = {k: partial(tuned_baseline, BASELINES[k], t) for k, t in tunings.items()}
    curves = evaluate(
        k_report,
        task,
        {"learned": learned, **tuned, **controls},
        horizon=horizon,
        num_seeds=num_seeds,
        probe_every=probe_every,
    )
    return Comparison(
        summary={
            "task": task.name,
            "seen": allow_seen and is_seen(task, seen),
            "steps": horizon,
            "num_seeds": num_seeds,
            **summarise(curves, tunings),
        },
        curves=bands(curves, tunings),
        grids=[grid_band(tuning) for tuning in tunings.values()],
    )


def tuned_baseline(baseline: Baseline, tuning: Tuning, *, horizon: int):
    """Make a baseline at the rate that was chosen."""
    return baseline(tuning.learning_rate, horizon)


def summarise(curves: Mapping[str, Curves], tunings: Mapping[str, Tuning]) -> dict[str, Any]:
    """Compute the figures of a row: learned optimizer, best baseline, then every entrant."""
    learned = curves["learned"]
    best = min(tunings, key=lambda name: tunings[name].median_final_loss)
    tests = {f"learned_test_{k}": float(np.median(v)) for k, v in learned.test.items()}
    tests |= {f"baseline_test_{k}": float(np.median(v)) for k, v in curves[best].test.items()}
    entries = {
        name: {
            "name": name,
            **with_interval("final_loss", median_interval(entrant.final_loss)),
            **with_interval("speedup", speedup_over(learned, entrant)),
            "diverged": float(np.mean(entrant.diverged)),
            "seconds_per_step": entrant.seconds_per_step,
        }
        for name, entrant in curves.items()
        if name != "learned"
    }
    for name, tuning in tunings.items():
        entries[name] |= {
            "name": tuning.label,
            "learning_rate": tuning.learning_rate,
            "at_grid_edge": tuning.at_grid_edge,
        }
    return {
        **with_interval("learned_final_loss", median_interval(learned.final_loss)),
        "best_baseline": tunings[best].label,
        **with_interval("best_baseline_final_loss", median_interval(curves[best].final_loss)),
        **with_interval("speedup", speedup_over(learned, curves[best])),
        "diverged": float(np.mean(learned.diverged)),
        **tests,
        "learned_seconds_per_step": learned.seconds_per_step,
        "baseline_seconds_per_step": curves[best].seconds_per_step,
        "baselines": [entries[name] for name in tunings],
        "controls": [entries[name] for name in entries if name not in tunings],
    }


def speedup_over(learned: Curves, other: Curves) -> Interval:
    """Median speed-up over another optimizer, and its interval."""
    return median_interval(speedups(learned.steps, learned.probe_loss, other.probe_loss))


def with_interval(name: str, interval: Interval) -> dict[str, float]:
    """Put the median under `name`, the interval under `name_low` and `name_high`."""
    return {name: interval.median, f"{name}_low": interval.low, f"{name}_high": interval.high}


def bands(curves: Mapping[str, Curves], tunings: Mapping[str, Tuning]) -> dict[str, Any]:
    """Median and quartiles of every entrant's probe loss."""

    def role(name: str) -> Role:
        return "learned" if name == "learned" else "baseline" if name in tunings else "control"

    return {
        "steps": curves["learned"].steps.tolist(),
        "entrants": [
            {
                "name": tunings[name].label if name in tunings else name,
                "role": role(name),
                **quartiles(entrant.probe_loss, axis=0),
            }
            for name, entrant in curves.items()
        ],
    }


def grid_band(tuning: Tuning) -> dict[str, Any]:
    """Median and quartiles of the final loss at every learning rate of a grid."""
    return {
        "name": tuning.baseline,
        "learning_rates": tuning.learning_rates.tolist(),
        "chosen": tuning.learning_rate,
        **quartiles(tuning.final_loss, axis=1),
    }


def quartiles(losses: np.ndarray, *, axis: int) -> dict[str, list[float]]:
    """Median and quartiles along an axis, with six significant digits."""
    names = ("low", "median", "high")
    values = np.quantile(losses, (0.25, 0.5, 0.75), axis=axis)
    return {k: [float(f"{v:.6g}") for v in row] for k, row in zip(names, values, strict=True)}
