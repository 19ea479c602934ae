"""What policies reach, beside momentum SGD at tuned rates; four studies.

`python benchmarks/policies.py STUDY` meta-trains the study's entrants at equal inner steps (a run
that is there is continued, or used if it is done), then trains evaluation tasks on seeds and
horizons that none of them saw:
    scheduler  one learning-rate policy, by PPO and by NRES, on digits
    varied     the same on instances whose best rates lie 256-fold apart, from short windows
    agents     one agent for a badly scaled network, and one a tensor, paid as a team or for the
               difference each made
    macro_f1   a policy that is paid for macro-F1, and one for the loss, on imbalanced digits

The starts, batches and probes of a seed are the same for everybody. Baselines are tuned for each
task and horizon on seeds of their own, as docs/suite.md says. "Start" is the first entrant before
meta-training, which keeps its hyperparameters as they are.
"""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from l2o import registry
from l2o.cli.meta_train import meta_trained
from l2o.cli.methods.estimators import NRES
from l2o.cli.presets import PRESETS
from l2o.cli.settings import MetaTraining, Output, first_theta
from l2o.distributed import processes
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.evaluate import evaluate
from l2o.evaluation.seen import is_seen
from l2o.evaluation.statistics import mean_interval, median_interval, speedups
from l2o.evaluation.training import Curves
from l2o.evaluation.tuning import Tuning, tune
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler
from l2o.rl.reward import Reward
from l2o.rng import stream
from l2o.runs.folder import atomic_write
from l2o.task import Task, TaskFamily
from l2o.tasks.digits import digits, digits_mlp
from l2o.tasks.image_mlp import image_mlp

TUNED = ("sgdm", "sgdm_cosine")


@dataclass(frozen=True)
class Options:
    """Compares ways to meta-train policies."""

    study: Annotated[Literal["scheduler", "varied", "agents", "macro_f1"], tyro.conf.Positional]
    """Which of the four."""
    seeds: int = 16
    """Evaluation runs of each optimizer."""
    inner_steps: float | None = None
    """Of each meta-training, about; those of the study if not given."""
    seed: int = 0
    """Of everything random."""
    runs: Path = Path("runs/policies")
    """Where the runs are, or will be."""
    cache: Path = Path("runs/tuning")
    """Where tunings are kept."""
    out: Path = Path("benchmarks/results")
    """Where the figures go."""


@dataclass(frozen=True)
class Study:
    """What is compared on what.

    Attributes:
        entrants: settings of meta-training by name; the others are compared with the first.
        tasks: to evaluate on.
        horizons: inner steps of an evaluation run.
        inner_steps: of each meta-training, about.
        metric: of the test, that the table shows besides the final loss.
    """

    entrants: Mapping[str, MetaTraining]
    tasks: tuple[str, ...]
    horizons: tuple[int, ...]
    inner_steps: float
    metric: str


def one_agent() -> LearnedOptimizer:
    """One agent that turns the rate of all tensors, over six decades, from a low one."""
    return scheduler(learning_rate=0.0003, lowest=1e-5, highest=30.0, step=0.5)


def agent_of_each_tensor() -> LearnedOptimizer:
    """One agent for each tensor that turns its rate, alike in all else."""
    return per_tensor_controller(
        hyperparameters=[], learning_rate=0.0003, lowest=1e-5, highest=30.0, step=0.5
    )


def plain_digits() -> TaskFamily:
    """Digits without variations, on networks that are not those of the evaluation."""
    return TaskFamily(
        name="plain_digits",
        train=tuple(
            image_mlp(f"plain_digits_{'x'.join(map(str, hidden))}", digits(), hidden)
            for hidden in ((48,), (48, 48), (96, 48))
        ),
        evaluation=digits_mlp().evaluation,
    )


PPO = replace(PRESETS["scheduler"], evaluate=False, output=Output(quiet=True))
SHORT_WINDOWS = replace(PPO, window=150, method=replace(PPO.method, gae_lambda=0.95))
SHORT = replace(SHORT_WINDOWS, horizon=(300, 600))
PLAIN = replace(PPO, task=("policies:plain_digits",))
BY_NRES: dict[str, Any] = {"method": NRES(std=0.03), "window": 150}
STUDIES: Mapping[str, Study] = {
    "scheduler": Study(
        entrants={"ppo": PLAIN, "nres": replace(PLAIN, **BY_NRES)},
        tasks=("digits_mlp_32x32", "digits_mlp_128x128", "digits_mlp_64x64x64x64"),
        horizons=(400, 1000),
        inner_steps=23e6,
        metric="accuracy",
    ),
    "varied": Study(
        entrants={"ppo": SHORT_WINDOWS, "nres": replace(PPO, **BY_NRES)},
        tasks=("digits_mlp_32x32", "digits_mlp_128x128"),
        horizons=(400, 1000),
        inner_steps=28.8e6,
        metric="accuracy",
    ),
    "agents": Study(
        entrants={
            "one agent": replace(
                SHORT, task=("badly_scaled_mlp",), optimizer=("policies:one_agent",)
            ),
            "team": replace(
                SHORT, task=("badly_scaled_mlp",), optimizer=("policies:agent_of_each_tensor",)
            ),
            "difference": replace(
                SHORT,
                task=("badly_scaled_mlp",),
                optimizer=("policies:agent_of_each_tensor",),
                method=replace(SHORT.method, credit="difference"),
            ),
        },
        tasks=("badly_scaled_mlp_alternating",),
        horizons=(400,),
        inner_steps=6e6,
        metric="accuracy",
    ),
    "macro_f1": Study(
        entrants={
            "macro-F1": replace(
                SHORT,
                task=("imbalanced_digits_mlp",),
                method=replace(SHORT.method, reward=Reward(("macro_f1",), on="valid", batches=8)),
            ),
            "loss": replace(
                SHORT,
                task=("imbalanced_digits_mlp",),
                method=replace(SHORT.method, reward=Reward(on="valid", batches=8)),
            ),
        },
        tasks=("imbalanced_digits_mlp_32x32",),
        horizons=(400,),
        inner_steps=6e6,
        metric="macro_f1",
    ),
}


def main(options: Options) -> None:
    """Meta-trains, evaluates, prints a table and writes JSON."""
    console = Console()
    processes.use_cpu_cores(len(processes.cores()))
    study = STUDIES[options.study]
    entrants = {
        name: entrant(name, settings, study, options, console)
        for name, settings in study.entrants.items()
    }
    first, _, summary = next(iter(entrants.values()))
    start = first_theta(first, options.seed)
    optimizers = {
        **{name: partial(transform, lopt, theta) for name, (lopt, theta, _) in entrants.items()},
        "start": partial(transform, first, start),
    }
    rows = []
    for task in registry.tasks_to_evaluate(study.tasks):
        for horizon in study.horizons:
            console.print(f"evaluating on {task.name}, {horizon} steps")
            rows.append(row_of(task, horizon, optimizers, summary["trained_on"], options))
    result = {
        "study": options.study,
        "seeds": options.seeds,
        "seed": options.seed,
        "meta_training": {name: dict(found[2]) for name, found in entrants.items()},
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "rows": rows,
    }
    path = options.out / f"policies_{options.study}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(result, indent=2) + "\n").encode())
    console.print(table(rows, study))
    console.print(str(path))


def entrant(
    name: str, settings: MetaTraining, study: Study, options: Options, console: Console
) -> tuple[LearnedOptimizer, Theta, Mapping[str, Any]]:
    """An entrant's design, theta and summary of its meta-training."""
    folder = options.runs / options.study / name.replace(" ", "_")
    output = replace(settings.output, run_dir=str(folder))
    settings = replace(settings, seed=options.seed, output=output)
    console.print(name)
    return meta_trained(settings, options.inner_steps or study.inner_steps, console)


def transform(lopt: LearnedOptimizer, theta: Theta, *, horizon: int):
    """The optimizer of an entrant."""
    return lopt.transform(theta, horizon=horizon)


def row_of(
    task: Task, horizon: int, optimizers: Mapping[str, Any], seen: list[str], options: Options
) -> dict[str, Any]:
    """The figures of everybody on one task at one horizon."""
    k_tuning, k_report = jax.random.split(stream(options.seed, "evaluation"))
    size = options.seeds
    tunings = tune(
        k_tuning, task, horizon=horizon, num_seeds=size, baselines=TUNED, cache=options.cache
    )
    tuned = {name: partial(tuned_baseline, tuning) for name, tuning in tunings.items()}
    curves = evaluate(
        k_report,
        task,
        {**optimizers, **tuned},
        horizon=horizon,
        num_seeds=size,
    )
    first = next(iter(curves.values()))
    return {
        "task": task.name,
        "seen": is_seen(task, frozenset(seen)),
        "steps": horizon,
        "learning_rates": {name: t.best.learning_rate for name, t in tunings.items()},
        "hyperparameters": {name: dict(t.best.config) for name, t in tunings.items()},
        "at_grid_edge": [name for name, t in tunings.items() if t.at_grid_edge],
        "entrants": {name: figures(found, first) for name, found in curves.items()},
    }


def tuned_baseline(tuning: Tuning, *, horizon: int):
    """A baseline at the setting that was chosen."""
    return BASELINES[tuning.name].make(tuning.best.config, horizon)


def figures(found: Curves, first: Curves) -> dict[str, Any]:
    """An entrant's figures with 95 % intervals, and the first entrant's beside it, seed by seed."""
    ratio = median_interval(np.log(first.final_loss) - np.log(found.final_loss))
    return {
        "final_loss": median_interval(found.final_loss),
        "final_loss_mean": float(np.mean(found.final_loss)),
        "final_loss_by_seed": found.final_loss.tolist(),
        "first_over_it": [float(np.exp(x)) for x in ratio],
        "speedup_of_first": median_interval(
            speedups(found.steps, first.probe_loss, found.probe_loss)
        ),
        "diverged": float(np.mean(found.diverged)),
        **{f"test_{k}": mean_interval(v) for k, v in found.test.items()},
        **{f"first_less_it_{k}": mean_interval(first.test[k] - v) for k, v in found.test.items()},
    }


def table(rows: list[dict[str, Any]], study: Study) -> Table:
    """One line an entrant, task and horizon."""
    shown = Table(title="Median final training loss and mean of the test, 95 % intervals")
    first = next(iter(study.entrants))
    of_test = f"test {study.metric}"
    for column in ("task", "", "final loss", f"{first} over it", of_test, f"{first} less it"):
        shown.add_column(column)
    for row in rows:
        for name, entrant in row["entrants"].items():
            rate = row["learning_rates"].get(name)
            shown.add_row(
                f"{row['task']} {row['steps']}",
                name if rate is None else f"{name} {rate:.3g}",
                interval(entrant["final_loss"]),
                interval(entrant["first_over_it"]),
                interval(entrant[f"test_{study.metric}"]),
                interval(entrant[f"first_less_it_{study.metric}"]),
            )
    return shown


def interval(values: Any) -> str:
    """A figure with its interval."""
    middle, low, high = values
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    main(tyro.cli(Options))
