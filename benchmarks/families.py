"""What every family of tasks is, how fast it trains, and that it can be trained.

`python benchmarks/families.py` goes through the families of `l2o list`: source and licence of
their data, numbers of parameters of the tasks that are reported on, and on the first task that is
meta-trained on, inner steps a second of 32 runs under `optax.adam` and in outer steps of PES with
AdafacMLP on 16 antithetic pairs. On the first task that is reported on Adam trains for 200 steps
at seven rates on four seeds; at the best of them the median final loss of four other seeds stands
beside the median first loss. Everything goes to `tasks/families.json`, family by family, so a run
that was stopped goes on where it was; `l2o list` shows it. On a machine that does other things
`--no-speeds` leaves out what is timed.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from measuring import environment, take_turns, wide_console
from rich.console import Console
from throughput import Setting, lasting, learner_of, meta_training, plain_training

from l2o.distributed import processes
from l2o.distributed.mesh import population_mesh
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import train_settings
from l2o.registry import TASKS, task_family
from l2o.rng import stream
from l2o.runs.folder import atomic_write
from l2o.task import Task, TaskFamily

PAIRS = 16
HORIZON = 200
SEEDS = 4
LEARNING_RATES = 10.0 ** np.arange(-4.0, -0.9, 0.5)
ADAM = "adam"
PES = "pes"


@dataclass(frozen=True)
class Options:
    """Describes, times and trains families of tasks."""

    families: tuple[str, ...] = tuple(name for name in TASKS if not name.startswith("minilm"))
    """Names from `l2o list`; of MiniLM, which takes minutes a run, `fine_tuning.py` tells."""
    out: Path = Path("tasks/families.json")
    """File that is written, and gone on with."""
    rounds: int = 3
    """Turns of each program that is timed."""
    seconds: float = 0.5
    """About how long a turn is."""
    speeds: bool = True
    """Whether to time training, which asks for a machine that does nothing else."""
    again: bool = False
    """Whether to measure anew what the file holds."""


def num_parameters(task: Task) -> int:
    """Numbers that are trained."""
    params = jax.eval_shape(lambda key: task.init(key, task.sample(key)), jax.random.key(0))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def speeds(task: Task, options: Options) -> dict[str, float]:
    """Inner steps a second under Adam and in outer steps of PES, which run in turn."""
    setting = Setting(task, PAIRS, 500, population_mesh(jax.device_count()))
    plain, _ = plain_training(setting)
    outer, _ = meta_training(*learner_of("pes", "adafac_mlp", setting))
    programs = {name: lasting(p, options.seconds) for name, p in ((ADAM, plain), (PES, outer))}
    times = take_turns(programs, options.rounds)
    return {name: 1.0 / times[name].median for name in programs}


def tuned_adam(task: Task) -> dict[str, float]:
    """How far Adam with its best rate lowers the loss, on seeds that did not choose the rate."""
    starts = draw_starts(stream(0, "evaluation"), task, 2 * SEEDS)
    found = train_settings(task, optax.adam, LEARNING_RATES, starts, horizon=HORIZON)
    chosen = int(np.argmin([np.median(curves.final_loss[:SEEDS]) for curves in found]))
    others = found[chosen].probe_loss[SEEDS:]
    return {
        "learning_rate": float(f"{LEARNING_RATES[chosen]:.3g}"),
        "first_loss": float(np.median(others[:, 0])),
        "final_loss": float(np.median(others[:, -1])),
    }


def describe(family: TaskFamily, before: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Everything about one family; what was measured before stays."""
    reported = family.evaluation or family.train
    sizes = [num_parameters(task) for task in reported]
    facts = {
        "source": family.source,
        "licence": family.licence,
        "tasks": len(reported),
        "parameters": [min(sizes), max(sizes)],
    }
    trained = before.get("tuned_adam") or tuned_adam(reported[0])
    timed = before.get("inner_steps_per_second")
    if options.speeds and not timed:
        timed = {**speeds(family.train[0], options), **environment()}
    return facts | {"tuned_adam": trained, "inner_steps_per_second": timed}


def main(options: Options) -> None:
    """Measures, and writes JSON after each family."""
    console: Console = wide_console()
    processes.use_cpu_cores(len(processes.cores()))
    about = environment() | {"cores": len(processes.cores())}
    before = json.loads(options.out.read_text())["families"] if options.out.is_file() else {}
    for name in options.families:
        kept = {} if options.again else before.get(name, {})
        if kept.get("inner_steps_per_second") or (kept and not options.speeds):
            continue
        try:
            family = task_family(name)
        except ValueError as error:  # data that are not there
            console.print(f"{name} is left out: {error}", highlight=False, markup=False)
            continue
        before[name] = describe(family, kept, options)
        jax.clear_caches()
        ordered = {k: before[k] for k in TASKS if k in before}
        content = {"environment": about, "families": ordered}
        atomic_write(options.out, (json.dumps(content, indent=1) + "\n").encode())
        console.print(name, before[name], highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Options))
