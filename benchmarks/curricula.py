"""Curricula and worst-case weights beside uniform meta-training, at equal inner steps.

`python benchmarks/curricula.py`

NominalMLP is meta-trained by PES on four tasks at once, which differ in what there is to learn
about them, in five ways that differ in one setting: runs of all lengths from the start and weights
that stay (`uniform`); runs that grow over the first half (`horizons`); weights that follow learning
progress (`progress`); weights that follow the worst meta-loss (`worst_case`); and, as a
control, weights that stay where those of the worst case end (`mostly_text`). Each way has
`--repetitions` seeds of its own. All then train a wider network of each kind, on starts that all
share. A figure is the logarithm of the final training loss less that of `uniform` of the same seed,
its mean and standard error over repetitions: averaged over tasks, and of each. `worst` compares the
largest logarithm over the loss of guessing among the tasks. Of each run the last tenth is kept, as
well: the median norm of the meta-gradient, and the mean meta-loss and weight of each task.

Runs are kept in `--runs` and are gone on with; figures go to `benchmarks/results/curricula.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from l2o.cli.meta_train import meta_trained
from l2o.cli.methods.estimators import PES
from l2o.cli.settings import MetaTraining, Output
from l2o.distributed import processes
from l2o.evaluation.report import environment
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.statistics import capped_losses
from l2o.evaluation.training import Trainer, finite_cap
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.registry import task_family
from l2o.rng import stream
from l2o.runs.folder import RunFolder, atomic_write
from l2o.runs.logging import read_metrics
from l2o.task import Task, TaskFamily

FAMILIES = ("digits_mlp", "python_mlp", "cancer_mlp", "poisson")


def first_and_last() -> TaskFamily:
    """The first task that each family is meta-trained on, and the last that it reports on."""
    families = [task_family(name) for name in FAMILIES]
    return TaskFamily(
        name="first_and_last",
        train=tuple(family.train[0] for family in families),
        evaluation=tuple(family.evaluation[-1] for family in families),
    )


def mostly_text() -> TaskFamily:
    """The same tasks with the weights at which the worst case ends: all but its floor on text."""
    return replace(first_and_last(), name="mostly_text", weights=(1.0, 37.0, 1.0, 1.0))


METHOD = PES(num_pairs=16)

UNIFORM = MetaTraining(
    task=("curricula:first_and_last",),
    optimizer=("nominal_mlp",),
    horizon=(50, 500),
    window=25,
    evaluate=False,
    output=Output(quiet=True),
    method=METHOD,
)


@dataclass(frozen=True)
class Options:
    """Compares curricula and worst-case weights with uniform meta-training."""

    steps: int = 300
    """Outer steps of each run."""
    repetitions: int = 3
    """Runs of meta-training of each way."""
    seeds: int = 16
    """Evaluation runs on each task."""
    horizon: int = 500
    """Inner steps of an evaluation run."""
    seed: int = 0
    """Seed of everything random."""
    runs: Path = Path("runs/curricula")
    """Where runs are kept."""
    out: Path = Path("benchmarks/results")
    """Where the figures go."""


def ways(options: Options) -> Mapping[str, MetaTraining]:
    """Settings of each way to meta-train."""
    return {
        "uniform": UNIFORM,
        "horizons": replace(UNIFORM, curriculum=options.steps // 2),
        "progress": replace(UNIFORM, method=replace(METHOD, weighting="learning_progress")),
        "worst_case": replace(UNIFORM, method=replace(METHOD, weighting="worst_case")),
        "mostly_text": replace(UNIFORM, task=("curricula:mostly_text",)),
    }


def main(options: Options) -> None:
    """Meta-train, evaluate, print a table and write JSON."""
    processes.use_cpu_cores(len(processes.cores()))
    console = Console()
    parts = UNIFORM.build()
    inner_steps = options.steps * parts.learner.steps
    thetas: list[Theta] = []
    ends: dict[str, list[dict[str, float]]] = {}
    for name, way in ways(options).items():
        for i in range(options.repetitions):
            folder = options.runs / f"{name}_{i}"
            console.print(str(folder), markup=False)
            output = replace(way.output, run_dir=str(folder))
            settings = replace(way, seed=options.seed + i, output=output)
            thetas.append(meta_trained(settings, inner_steps, console)[1])
            ends.setdefault(name, []).append(end_of(folder))
    found = {
        task.name: log_losses(parts.lopt, thetas, task, options).reshape(
            len(ways(options)), options.repetitions
        )
        for task in parts.evaluation
    }
    rows = {name: row(i, found) for i, name in enumerate(ways(options))}
    result = {
        "inner_steps": inner_steps,
        "steps": options.steps,
        "repetitions": options.repetitions,
        "seeds": options.seeds,
        "horizon": options.horizon,
        "environment": environment(),
        "ways": rows,
        "ends": ends,
        "log_final_loss": {name: values.tolist() for name, values in found.items()},
    }
    path = options.out / "curricula.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(result, indent=1) + "\n").encode())
    console.print(table(rows))
    console.print(str(path))


def end_of(folder: Path) -> dict[str, float]:
    """The last tenth of a run: its gradient's median norm, and means of each task."""
    lines = read_metrics(RunFolder(folder).metrics)
    last = lines[-max(1, len(lines) // 10) :]
    shown = [n for n in last[0] if n.endswith(("/meta_loss", "/weight"))]
    norm = float(np.median([line["meta_gradient_norm"] for line in last]))
    means = {name: float(np.mean([line[name] for line in last])) for name in shown}
    return {"meta_gradient_norm": norm, **means}


def log_losses(
    lopt: LearnedOptimizer, thetas: Sequence[Theta], task: Task, options: Options
) -> np.ndarray:
    """Mean over seeds of the logarithm of the final training loss over that of guessing.

    Returns:
        Shape (thetas,).
    """
    make = lambda theta: lopt.transform(theta, horizon=options.horizon)
    starts = draw_starts(stream(options.seed, "evaluation"), task, options.seeds)
    trainer = Trainer(task, make, horizon=options.horizon, probe_every=options.horizon)
    stacked = jax.tree.map(lambda *leaves: np.asarray(jnp.stack(leaves)), *thetas)
    losses = [capped_losses(c.final_loss, finite_cap(task)) for c in trainer.train(stacked, starts)]
    return np.mean(np.log(np.maximum(np.array(losses) / task.loss_scale, 1e-12)), axis=1)


def row(way: int, found: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Logarithms of a way beside those of `uniform`, the first: of all tasks and of each."""
    every = np.stack(list(found.values()))  # tasks, ways, repetitions
    differences = {
        "all": np.mean(every[:, way] - every[:, 0], axis=0),
        "worst": np.max(every[:, way], axis=0) - np.max(every[:, 0], axis=0),
        **{name: values[way] - values[0] for name, values in found.items()},
    }
    return {
        what: {
            "mean": float(np.mean(values)),
            "standard_error": float(np.std(values, ddof=1) / np.sqrt(len(values))),
        }
        for what, values in differences.items()
    }


def table(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """One line a way."""
    shown = Table(title="ln of the final loss less that of uniform, mean ± standard error")
    for what in ("", *rows["uniform"]):
        shown.add_column(what)
    for name, values in rows.items():
        shown.add_row(
            name, *(f"{v['mean']:+.3f} ± {v['standard_error']:.3f}" for v in values.values())
        )
    return shown


if __name__ == "__main__":
    main(tyro.cli(Options))
