"""A learning-rate scheduler meta-trained by PPO and by NRES, beside momentum SGD at tuned rates.

`python benchmarks/policies.py` meta-trains the `scheduler` preset by both at equal inner steps (a
run that is there is continued, or used if it is done), then trains evaluation tasks on seeds and
horizons that neither saw. The starts, batches and probes of a seed are the same for everybody; the
rates of the baselines are the best of nine from 1e-4 to 1, tuned for each task and horizon on
seeds of their own. "Untrained" keeps the rate that the scheduler starts from.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

from l2o import lookup, release
from l2o.comparison import compare
from l2o.distributed import hosts
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.meta_training import meta_train
from l2o.planning.plan import theta_key
from l2o.run_folder import RunFolder, atomic_write
from l2o.settings import PRESETS, MetaTraining
from l2o.streams import stream


@dataclass(frozen=True)
class Options:
    """Compares ways to meta-train one policy."""

    tasks: tuple[str, ...] = ("digits_mlp_32x32", "digits_mlp_128x128")
    """Evaluation tasks of digits_mlp; meta-training saw other instances, and no 128x128."""
    horizons: tuple[int, ...] = (400, 1000)
    """Inner steps of an evaluation run; meta-training saw multiples of its window of 150."""
    seeds: int = 32
    """Evaluation runs of each optimizer."""
    steps: int | None = None
    """Outer steps; those of the preset if not given."""
    seed: int = 0
    """Of everything random."""
    runs: Path = Path("runs/policies")
    """Where the runs are, or will be."""
    out: Path = Path("benchmarks/results/policies.json")
    """Where the figures go."""


def settings_of(options: Options) -> dict[str, MetaTraining]:
    """The meta-training of each entrant."""
    base = replace(PRESETS["scheduler"], evaluate=False, quiet=True, seed=options.seed)
    if options.steps is not None:
        base = replace(base, steps=options.steps)
    return {
        "ppo": base,
        "nres": replace(base, estimator="nres", std=0.03, learning_rate=3e-3),
    }


def meta_trained(
    options: Options, console: Console
) -> dict[str, tuple[LearnedOptimizer, Theta, Mapping[str, Any]]]:
    """Each entrant's design, theta and summary of its meta-training."""
    found = {}
    for name, settings in settings_of(options).items():
        folder = options.runs / name
        if not RunFolder(folder).theta.exists():
            resume = RunFolder(folder).config.exists()
            status = meta_train(replace(settings, run_dir=str(folder), resume=resume), console)
            if status:
                raise SystemExit(status)
        found[name] = (*release.load(folder), release.summary(folder))
    return found


def main(options: Options) -> None:
    """Meta-trains, evaluates, prints a table and writes JSON."""
    console = Console()
    hosts.use_cpu_cores(len(hosts.cores()))
    entrants = meta_trained(options, console)
    steps = {summary["inner_steps"] for _, _, summary in entrants.values()}
    if len(steps) > 1:
        raise SystemExit(f"error: runs of unequal inner steps: {sorted(steps)}. Delete one.")
    lopt, theta, summary = entrants["ppo"]
    start = lopt.init(theta_key(options.seed))
    others = {
        "nres": partial(transform, *entrants["nres"][:2]),
        "untrained": partial(transform, lopt, start),
    }
    rows = []
    for task in lookup.tasks_to_evaluate(options.tasks):
        for horizon in options.horizons:
            console.print(f"evaluating on {task.name}, {horizon} steps")
            compared = compare(
                stream(options.seed, "evaluation"),
                task,
                partial(transform, lopt, theta),
                num_steps=horizon,
                num_seeds=options.seeds,
                controls=others,
                seen=frozenset(summary["trained_on"]),
                baselines=("sgdm", "sgdm_cosine"),
            )
            rows.append(compared.summary)
    result = {
        "options": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(options).items()},
        "meta_training": {name: dict(found[2]) for name, found in entrants.items()},
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "tasks": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out, (json.dumps(result, indent=2) + "\n").encode())
    console.print(table(rows))
    console.print(str(options.out))


def transform(lopt: LearnedOptimizer, theta: Theta, *, horizon: int):
    """The optimizer of an entrant."""
    return lopt.transform(theta, horizon=horizon)


def table(rows: list[Mapping[str, Any]]) -> Table:
    """Final losses, and the speed-up of PPO's policy over each."""
    shown = Table(title="Final training loss: median, 95 % interval; PPO's speed-up over it")
    shown.add_column("task, steps")
    for name in ("ppo", "nres", "untrained", "sgdm", "sgdm_cosine"):
        shown.add_column(name)
    for row in rows:
        entries = {e["name"].split(" ")[0]: e for e in (*row["controls"], *row["baselines"])}
        cells = [interval(row, "learned_final_loss")]
        for name in ("nres", "untrained", "sgdm", "sgdm_cosine"):
            entry = entries[name]
            rate = f"\nlr {entry['learning_rate']:.3g}" if "learning_rate" in entry else ""
            speedup = interval(entry, "speedup")
            cells.append(f"{interval(entry, 'final_loss')}\nx {speedup}{rate}")
        diverged = f"\n{row['diverged']:.0%} diverged" if row["diverged"] else ""
        shown.add_row(f"{row['task']}\n{row['steps']}{diverged}", *cells)
    return shown


def interval(entry: Mapping[str, Any], name: str) -> str:
    """A median with its interval."""
    low, high = (entry[f"{name}_{end}"] for end in ("low", "high"))
    return f"{entry[name]:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    main(tyro.cli(Options))
