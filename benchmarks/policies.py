"""What policies reach, beside momentum SGD at tuned rates; four studies.

`python benchmarks/policies.py STUDY` meta-trains the study's entrants at equal inner steps (a run
that is there is continued, or used if it is done), then trains evaluation tasks on seeds and
horizons that none of them saw:
    scheduler  one learning-rate policy, by PPO and by NRES, on digits
    varied     the same on instances whose best rates lie 256-fold apart, from short windows
    agents     one agent for a badly scaled network, and one a tensor, paid as a team or for the
               difference each made
    macro_f1   a policy that is paid for macro-F1, and one for the loss, on imbalanced digits

Everybody is compared with baselines as docs/suite.md says. "Start" is the first entrant before
meta-training, which keeps its hyperparameters as they are. Its control, updates times the best
factor, is momentum SGD at its best constant rate, which is among the baselines.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

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
from l2o.evaluation.compare import compare
from l2o.evaluation.report import environment
from l2o.evaluation.statistics import mean_interval, median_interval
from l2o.evaluation.tables import interval_text, label, number
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler
from l2o.rl.reward import Reward
from l2o.rng import stream
from l2o.runs.folder import atomic_write
from l2o.task import Task, TaskFamily
from l2o.tasks.digits import digits, digits_mlp
from l2o.tasks.image_mlp import image_mlp

BASELINES = ("sgdm", "sgdm_cosine", "nadamw")
"""Momentum SGD at a constant rate, which is what policies change, comes first."""

SHOWN = (
    "final_loss",
    "final_loss_low",
    "final_loss_high",
    "final_loss_by_seed",
    "final_loss_mean",
    "final_loss_worst_tenth",
    "test_by_seed",
)
"""Fields of the table."""


@dataclass(frozen=True)
class Options:
    """Compares ways to meta-train policies."""

    study: Annotated[Literal["scheduler", "varied", "agents", "macro_f1"], tyro.conf.Positional]
    """Which of the four."""
    seeds: int = 16
    """Evaluation runs of each optimizer."""
    repetitions: int = 1
    """Runs of meta-training of each entrant, with seeds one after the other."""
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
        entrants: settings of meta-training by name.
        cases: evaluation tasks, and the inner steps of a run on each.
        inner_steps: of each meta-training, about.
        metric: of the test, that the table shows besides the final loss.
    """

    entrants: Mapping[str, MetaTraining]
    cases: Sequence[tuple[str, int]]
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
        cases=(
            ("digits_mlp_32x32", 400),
            ("digits_mlp_32x32", 1000),
            ("digits_mlp_128x128", 400),
            ("digits_mlp_64x64x64x64", 400),
        ),
        inner_steps=23e6,
        metric="accuracy",
    ),
    "varied": Study(
        entrants={"ppo": SHORT_WINDOWS, "nres": replace(PPO, **BY_NRES)},
        cases=(("digits_mlp_32x32", 400), ("digits_mlp_128x128", 400)),
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
        cases=(("badly_scaled_mlp_alternating", 400),),
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
        cases=(("imbalanced_digits_mlp_32x32", 400),),
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
        f"{name} {i + 1}" if options.repetitions > 1 else name: entrant(
            settings, options.runs / options.study / f"{name.replace(' ', '_')}_{i}", i, options
        )
        for name, settings in study.entrants.items()
        for i in range(options.repetitions)
    }
    first, _, summary = next(iter(entrants.values()))
    optimizers = {
        **{name: partial(transform, lopt, theta) for name, (lopt, theta, _) in entrants.items()},
        "start": partial(transform, first, first_theta(first, options.seed)),
    }
    rows = [
        row_of(task, steps, optimizers, summary["trained_on"], options)
        for name, steps in study.cases
        for task in registry.tasks_to_evaluate([name])
    ]
    result = {
        "study": options.study,
        "seeds": options.seeds,
        "seed": options.seed,
        "meta_training": {name: dict(found[2]) for name, found in entrants.items()},
        "environment": environment(),
        "rows": rows,
    }
    path = options.out / f"policies_{options.study}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(result, indent=1) + "\n").encode())
    console.print(table(rows, study))
    console.print(str(path))


def entrant(
    settings: MetaTraining, folder: Path, repetition: int, options: Options
) -> tuple[LearnedOptimizer, Theta, Mapping[str, Any]]:
    """An entrant's design, theta and summary of its meta-training."""
    console = Console()
    console.print(str(folder))
    settings = replace(
        settings,
        seed=options.seed + repetition,
        output=replace(settings.output, run_dir=str(folder)),
    )
    steps = options.inner_steps or STUDIES[options.study].inner_steps
    return meta_trained(settings, steps, console)


def transform(lopt: LearnedOptimizer, theta: Theta, *, horizon: int):
    """The optimizer of an entrant."""
    return lopt.transform(theta, horizon=horizon)


def row_of(
    task: Task, horizon: int, optimizers: Mapping[str, Any], seen: list[str], options: Options
) -> dict[str, Any]:
    """The figures of everybody on one task at one horizon, as `l2o evaluate` reports them."""
    found = {
        name: compare(
            stream(options.seed, "evaluation"),
            task,
            optimizer,
            horizon=horizon,
            num_seeds=options.seeds,
            seen=frozenset(seen),
            allow_seen=True,
            baselines=BASELINES,
            cache=options.cache,
        ).summary
        for name, optimizer in optimizers.items()
    }
    print(f"{task.name}, {horizon} steps", {k: v["learned_final_loss"] for k, v in found.items()})
    return {"task": task.name, "steps": horizon, "entrants": found}


def table(rows: list[dict[str, Any]], study: Study) -> Table:
    """One line an entrant or baseline, task and horizon."""
    shown = Table(title="Median final training loss, mean and interval of the test, over seeds")
    first = next(iter(study.entrants))
    first = first if first in rows[0]["entrants"] else f"{first} 1"
    for column in ("task", "", "final loss", "mean", "worst tenth", "best constant over it"):
        shown.add_column(column)
    shown.add_column(f"test {study.metric}")
    shown.add_column(f"{first}'s less it")
    for row in rows:
        found = row["entrants"]
        constant, *others = next(iter(found.values()))["baselines"]
        everybody = {name: {k: s[f"learned_{k}"] for k in SHOWN} for name, s in found.items()}
        everybody |= {label(baseline): baseline for baseline in (constant, *others)}
        losses = constant["final_loss_by_seed"]
        of_first = np.array(everybody[first]["test_by_seed"][study.metric])
        for name, entry in everybody.items():
            ratio = median_interval(log_of(losses) - log_of(entry["final_loss_by_seed"]))
            test = np.array(entry["test_by_seed"][study.metric])
            shown.add_row(
                f"{row['task']} {row['steps']}",
                name,
                interval_text(*(entry[f"final_loss{end}"] for end in ("", "_low", "_high"))),
                number(entry["final_loss_mean"]),
                number(entry["final_loss_worst_tenth"]),
                interval_text(*np.exp(ratio)),
                interval_text(*mean_interval(test)),
                interval_text(*mean_interval(of_first - test)),
            )
    return shown


def log_of(losses: Sequence[float]) -> np.ndarray:
    """Logarithms of losses, of which the least that float32 has stands for zero."""
    return np.log(np.maximum(losses, np.finfo(np.float32).tiny))


if __name__ == "__main__":
    main(tyro.cli(Options))
