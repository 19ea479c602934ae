"""Whether a finer grid of learning rates, or other seeds, would change what tuning found.

`python benchmarks/resolution.py` tunes the rates of Adam, Muon and momentum SGD as docs/suite.md
says, without random settings, then tries half of the final spacing, over a third of a decade to
both sides of the best rate, on the finalists' seeds. It writes, for each task, horizon and
baseline, the median final loss before and after, and the interval that the gain is compared with;
and the medians of what was lowest in the search, and of what was chosen, on 48 other seeds.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from l2o import registry
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.report import environment
from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import median_interval
from l2o.evaluation.tuning import Tuning, trainer_of, tune
from l2o.rng import stream
from l2o.runs.folder import atomic_write
from l2o.task import Task

OTHER_SEEDS = 48
"""Seeds on which what the search and the finalists chose are looked at again."""


@dataclass(frozen=True)
class Options:
    """Tunes, then looks closer."""

    task: tuple[str, ...] = ("digits_mlp_32x32",)
    """Families, or their evaluation tasks."""
    horizon: tuple[int, ...] = (200, 1000)
    """Inner steps of a run."""
    baselines: tuple[str, ...] = ("adam", "muon", "sgdm")
    """Names of what is tuned."""
    seeds: int = 16
    """Runs at each rate."""
    out: Path = Path("benchmarks/results/resolution.json")
    """Where the figures go."""


def main(options: Options) -> None:
    """Writes a row for each task, horizon and baseline."""
    rows = [
        look_closer(task, horizon, name, options.seeds)
        for task in registry.tasks_to_evaluate(options.task)
        for horizon in options.horizon
        for name in options.baselines
    ]
    result = {"rows": rows, "environment": environment()}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out, (json.dumps(result, indent=1) + "\n").encode())


def look_closer(task: Task, horizon: int, name: str, num_seeds: int) -> dict[str, Any]:
    """A baseline's median final loss on the grid of tuning, and on one twice as fine."""
    key, k_other = jax.random.split(stream(0, "evaluation"))
    (tuning,) = tune(
        key, task, horizon=horizon, num_seeds=num_seeds, baselines=[name], num_random=0
    ).values()
    half = spacing(tuning) / 2.0
    steps = np.arange(-round(1 / 3 / half), round(1 / 3 / half) + 1)
    rates = tuning.best.learning_rate * 10.0 ** (half * steps)
    trainer = trainer_of(task, BASELINES[name], horizon)

    def medians_at(rates: np.ndarray, starts: Start) -> list[float]:
        settings = {k: np.full(rates.size, v) for k, v in BASELINES[name].defaults.items()}
        found = trainer.train(settings | {"learning_rate": rates}, starts, splits=())
        return [float(np.median(curves.final_loss)) for curves in found]

    both = draw_starts(key, task, 2 * num_seeds)
    medians = medians_at(rates, jax.tree.map(lambda x: x[num_seeds:], both))
    best = int(np.argmin(medians))
    whole = [t for t in tuning.trials if t.config["horizon_fraction"] == 1.0]
    lowest = min(whole, key=lambda trial: trial.median)
    on_other_seeds = medians_at(
        np.array([lowest.learning_rate, tuning.best.learning_rate]),
        draw_starts(k_other, task, OTHER_SEEDS),
    )
    interval = median_interval(tuning.again.final_loss)
    row = {
        "task": task.name,
        "steps": horizon,
        "baseline": name,
        "learning_rate": tuning.best.learning_rate,
        "final_loss": interval,
        "finer_learning_rate": float(rates[best]),
        "finer_final_loss": medians[best],
        "gains_less_than_its_interval": medians[best] >= interval.low,
        "rates_tried": len(tuning.beside_best),
        "finer_rates_tried": len(rates),
        "lowest_in_search": {"final_loss": lowest.median, "on_other_seeds": on_other_seeds[0]},
        "chosen": {
            "final_loss": tuning.again.median,
            "on_other_seeds": on_other_seeds[1],
        },
    }
    print(json.dumps(row))
    return row


def spacing(tuning: Tuning) -> float:
    """Decades from the best rate to the nearest one that was tried."""
    logs = np.log10([trial.learning_rate for trial in tuning.beside_best])
    distances = np.abs(logs - np.log10(tuning.best.learning_rate))
    return float(np.min(distances[distances > 0.0]))


if __name__ == "__main__":
    main(tyro.cli(Options))
