"""Loss against examples: one policy that is told what they count, beside five that are not.

`python benchmarks/front.py`

On digits and on bytes of text, at equal inner steps of meta-training or search:

- `told`, one scheduler of Adam's rate and of the fraction of each batch that counts, by PPO, which
  is told the shares of `log_loss` and `examples` and used at eleven of them;
- `separate`, five such policies with a fifth of the inner steps each, each paid by shares of its
  own; `told_at_five` is the told policy at these shares;
- `nsga2`, Optuna's NSGA-II (Deb et al. 2002) over the rate and the fraction at a run's start and
  end, geometric between them, on the same tasks that the policies are meta-trained on: at most
  eleven points of its front, spread over the examples used;
- `nsga2_on_task`, on the smaller task of each family, the same search on that task itself.

All are measured on the test split with new seeds, as by `l2o pareto`. Hypervolumes are of the box
down from guessing and whole batches. Runs and searches are kept in `--runs`, and what is there is
not done again; figures go to `benchmarks/results/front.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import tyro
from rich.console import Console

from l2o.cli.meta_train import meta_trained
from l2o.cli.methods.method import MetaOptimizer
from l2o.cli.methods.policy_gradients import PPO
from l2o.cli.pareto import Pareto, Part, find_part, measure
from l2o.cli.settings import MetaTraining, Output
from l2o.distributed import processes
from l2o.evaluation.front import costs, not_dominated
from l2o.evaluation.front_report import NAME, FrontOf, front_table, write_front_report
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Trainer
from l2o.registry import task_family
from l2o.rl.reward import Reward
from l2o.rng import stream
from l2o.runs.folder import atomic_write
from l2o.task import Task

OBJECTIVES = ("log_loss", "examples")

SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Share of `log_loss` of each of the separate policies."""

MOST_POINTS = 11
"""Points of the told policy, and most of a search."""

POPULATION = 32
"""Trials of a generation of NSGA-II."""

TRIALS = 480
"""Trials of a search; each has as many runs as its inner steps allow."""

SPACE: Mapping[str, tuple[float, float]] = {
    "first_rate": (1e-4, 0.3),
    "last_rate": (1e-5, 0.3),
    "first_fraction": (1 / 16, 1.0),
    "last_fraction": (1 / 16, 1.0),
}
"""Ranges of a search, in logarithms; they are those of the policies."""


BUDGETS: Mapping[str, float] = {"digits_mlp": 1.0, "python_mlp": 0.3}
"""Families, and the part of the inner steps that each is given: text takes longer a step."""


@dataclass(frozen=True)
class Options:
    """Compares a policy that is told what examples count with five that are not, and NSGA-II."""

    tasks: tuple[str, ...] = (
        "digits_mlp_32x32",
        "digits_mlp_128x128",
        "python_mlp_32",
        "python_mlp_64",
    )
    """Evaluation tasks to report on; those that are learned on are their families' others."""
    searched: tuple[str, ...] = ("digits_mlp_32x32", "python_mlp_32")
    """Those of them on which NSGA-II searches, too, each with as many inner steps."""
    inner_steps: float = 4e6
    """Inner steps of meta-training, or of a search, on digits; 30 % of that on text."""
    horizon: int = 200
    """Inner steps of a run."""
    seeds: int = 16
    """Evaluation runs of each point."""
    seed: int = 0
    """Seed of everything random."""
    runs: Path = Path("runs/front")
    """Where runs and searches are kept."""
    out: Path = Path("benchmarks/results")
    """Where the figures go."""


class ScheduledState(NamedTuple):
    """State of `scheduled_adam`.

    Attributes:
        step: Number of steps taken.
        batch_fraction: Fraction of the next batch that counts.
        adam: State of Adam.
    """

    step: jax.Array
    batch_fraction: jax.Array
    adam: Any


def scheduled_adam(setting: jax.Array, horizon: int) -> optax.GradientTransformation:
    """Make Adam with a rate and a fraction of batches that go geometrically to their last value.

    Args:
        setting: Values of `SPACE`, shape (4,).
        horizon: Inner steps of a run.
    """
    first_rate, last_rate, first_fraction, last_fraction = jnp.log(setting)
    adam = optax.scale_by_adam()

    def between(first: jax.Array, last: jax.Array, count: jax.Array) -> jax.Array:
        return jnp.exp(first + (last - first) * jnp.minimum(count / max(horizon - 1, 1), 1.0))

    def init(params: optax.Params) -> ScheduledState:
        return ScheduledState(jnp.int32(0), jnp.exp(first_fraction), adam.init(params))

    def update(updates, state, params=None):
        directions, after = adam.update(updates, state.adam, params)
        rate = between(first_rate, last_rate, state.step)
        fraction = between(first_fraction, last_fraction, state.step + 1)
        scaled = jax.tree.map(lambda d: -rate * d, directions)
        return scaled, ScheduledState(state.step + 1, fraction, after)

    return optax.GradientTransformation(init, update)


def policy_settings(
    family: str, share: float | None, seed: int, folder: Path, options: Options
) -> MetaTraining:
    """Settings of the meta-training of a policy, told or paid by a share of `log_loss` alone."""
    words = ["scheduler", "base=adam", "learning_rate=0.01", "lowest=1e-5", "highest=0.3"]
    words += ["hyperparameters=batch_fraction", "action_interval=10"]
    words += ["objectives=log_loss,examples"] if share is None else []
    shares = (0.5, 0.5) if share is None else (share, 1.0 - share)
    unit = (1.0, 2.0)  # a nat of the logarithm for half of all examples
    weights = unit if share is None else tuple(s * u for s, u in zip(shares, unit, strict=True))
    return MetaTraining(
        task=(family,),
        optimizer=tuple(words),
        horizon=(options.horizon,),
        window=options.horizon // 2,
        seed=seed,
        evaluate=False,
        output=Output(run_dir=str(folder), quiet=True),
        method=PPO(
            reward=Reward(OBJECTIVES, weights=weights, on="valid"),
            meta_optimizer=MetaOptimizer(learning_rate=1e-3),
        ),
    )


def policies(family: str, inner_steps: float, options: Options) -> dict[str, list[Path]]:
    """Meta-train the told policy and the separate ones; returns their run folders."""
    folder = options.runs / family
    console = Console()
    made: dict[str, list[Path]] = {"told": [], "separate": []}
    told = policy_settings(family, None, options.seed, folder / "told", options)
    wanted = [("told", told, inner_steps)]
    for i, share in enumerate(SHARES):
        settings = policy_settings(
            family, share, options.seed + i, folder / f"share_{share:g}", options
        )
        wanted.append(("separate", settings, inner_steps / len(SHARES)))
    for name, settings, steps in wanted:
        console.print(str(settings.output.run_dir), markup=False)
        meta_trained(settings, steps, console)
        made[name].append(Path(str(settings.output.run_dir)))
    return made


def nsga2(
    tasks: Sequence[Task], inner_steps: float, kept: Path, options: Options
) -> tuple[np.ndarray, int]:
    """Search settings of `scheduled_adam` by NSGA-II, or read those of a search that is done.

    Args:
        tasks: Tasks over which the costs on the validation split are averaged.
        inner_steps: Inner steps of all trials, about.
        kept: File for the front.
        options: Options of the benchmark.

    Returns:
        Settings, shape (points, 4), and the inner steps taken.
    """
    if kept.exists():
        found = json.loads(kept.read_text())
        return np.array(found["settings"], np.float32), found["inner_steps"]
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    num_runs = max(1, round(inner_steps / (TRIALS * options.horizon * len(tasks))))
    starts = [draw_starts(stream(options.seed, "validation"), task, num_runs) for task in tasks]
    trainers = [
        Trainer(task, scheduled_maker(options.horizon), horizon=options.horizon) for task in tasks
    ]
    space: dict[str, optuna.distributions.BaseDistribution] = {
        name: optuna.distributions.FloatDistribution(low, high, log=True)
        for name, (low, high) in SPACE.items()
    }
    sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=options.seed)
    study = optuna.create_study(directions=("minimize", "minimize"), sampler=sampler)
    for _ in range(TRIALS // POPULATION):
        trials = [study.ask(space) for _ in range(POPULATION)]
        settings = np.array([[t.params[name] for name in SPACE] for t in trials], np.float32)
        by_task = [
            [
                costs(curves, task, OBJECTIVES, "valid").mean(axis=0)
                for curves in trainer.train(settings, start, splits=("valid",))
            ]
            for task, trainer, start in zip(tasks, trainers, starts, strict=True)
        ]
        for trial, values in zip(trials, np.mean(by_task, axis=0), strict=True):
            study.tell(trial, values.tolist())
    values = np.array([trial.values for trial in study.trials])
    front = np.flatnonzero(not_dominated(values))
    front = front[np.argsort(values[front, 1])]
    front = front[np.unique(np.linspace(0, len(front) - 1, MOST_POINTS).round().astype(int))]
    settings = [[study.trials[i].params[name] for name in SPACE] for i in front]
    taken = TRIALS // POPULATION * POPULATION * num_runs * options.horizon * len(tasks)
    kept.parent.mkdir(parents=True, exist_ok=True)
    content = {"settings": settings, "values": values[front].tolist(), "inner_steps": taken}
    atomic_write(kept, (json.dumps(content, indent=1) + "\n").encode())
    return np.array(settings, np.float32), taken


def scheduled_maker(horizon: int):
    """A function from a setting to the optimizer at a horizon."""
    return lambda setting: scheduled_adam(setting, horizon)


def study(
    family_name: str, tasks: Sequence[Task], inner_steps: float, options: Options
) -> dict[str, Any]:
    """Learn and search on a family, measure on tasks of it; returns what goes into the file."""
    family = task_family(family_name)
    folder = options.runs / family_name
    made = policies(family_name, inner_steps, options)
    pareto = Pareto(
        optimizer=(),
        task=family_name,
        horizon=options.horizon,
        preferences=MOST_POINTS,
        seeds=options.seeds,
        seed=options.seed,
    )
    found_on_all, taken = nsga2(family.train, inner_steps, folder / "nsga2.json", options)
    rows = []
    for task in tasks:
        searched = {"nsga2": found_on_all}
        if task.name in options.searched:
            kept = folder / f"nsga2_{task.name}.json"
            searched["nsga2_on_task"] = nsga2([task], inner_steps, kept, options)[0]
        fronts = {
            name: [find_part(str(run), pareto) for run in runs] for name, runs in made.items()
        }
        fronts |= {
            name: [Part(scheduled_adam, settings, tuple(map(str, range(len(settings)))))]
            for name, settings in searched.items()
        }
        starts = draw_starts(stream(options.seed, "evaluation"), task, options.seeds)
        labels = {n: [x for part in parts for x in part.labels] for n, parts in fronts.items()}
        found = {
            name: np.concatenate([measure(part, task, starts, pareto) for part in parts])
            for name, parts in fronts.items()
        }
        labels["told_at_five"], found["told_at_five"] = labels["told"][1::2], found["told"][1::2]
        rows.append(FrontOf(task.name, False, labels, found))
    guessing = float(np.log(family.evaluation[0].loss_scale))
    config = {"inner_steps": inner_steps, "inner_steps_of_search": taken, "family": family_name}
    config |= {"horizon": options.horizon, "seeds": options.seeds, "seed": options.seed}
    page = write_front_report(folder, rows, OBJECTIVES, (guessing, 1.0), config=config)
    content = json.loads((page.parent / NAME).read_text())
    Console().print(front_table(content))
    return content


def main(options: Options) -> None:
    """Meta-train, search, measure, print tables and write JSON."""
    processes.use_cpu_cores(len(processes.cores()))
    found = {}
    for family, share in BUDGETS.items():
        tasks = [t for t in task_family(family).evaluation if t.name in options.tasks]
        if tasks:
            found[family] = study(family, tasks, share * options.inner_steps, options)
    path = options.out / "front.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(found, indent=1) + "\n").encode())
    print(path)


if __name__ == "__main__":
    main(tyro.cli(Options))
