"""What meta-training costs as it grows: population, window, horizon, width, depth, families.

`python benchmarks/growth.py` changes one size at a time from a base (AdafacMLP under PES on an MLP
64-32-32-10 of digits, 16 pairs, windows of 50, horizon 500) and reports inner steps a second,
memory, and seconds to trace and compile. Memory is what XLA says of the program of one outer step,
on one device. Programs take turns with the base.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import optax
import tyro
from measuring import environment, take_turns, wide_console, write
from rich.table import Table
from throughput import lasting, meta_training

from l2o.distributed import processes
from l2o.distributed.mesh import population_mesh
from l2o.estimators.estimator import average_estimators
from l2o.estimators.pes import pes
from l2o.learner import Learner, gradient_learner
from l2o.problem import inner_problem
from l2o.registry import DESIGNS
from l2o.task import Task
from l2o.tasks.digits import digits
from l2o.tasks.image_mlp import image_mlp
from l2o.tasks.quadratic import rosenbrock, rotated_quadratic


def mlp(*hidden: int) -> Task:
    """An MLP on digits."""
    return image_mlp(f"digits_mlp_{'x'.join(map(str, hidden))}", digits(), hidden)


@dataclass(frozen=True)
class Size:
    """A meta-training."""

    tasks: tuple[Task, ...] = field(default_factory=lambda: (mlp(32, 32),))
    pairs: int = 16
    window: int = 50
    horizon: int = 500


FAMILIES: tuple[Callable[[], Task], ...] = (
    lambda: mlp(32, 32),
    rotated_quadratic,
    rosenbrock,
)

GROWTH: Mapping[str, tuple[tuple[Any, ...], Callable[[Size, Any], Size]]] = {
    "pairs": ((8, 32, 64), lambda size, n: dataclasses.replace(size, pairs=n)),
    "window": (
        (10, 500),
        lambda size, n: dataclasses.replace(size, window=n, horizon=max(500, 2 * n)),
    ),
    "horizon": ((5000,), lambda size, n: dataclasses.replace(size, horizon=n)),
    "width": ((64, 128), lambda size, n: dataclasses.replace(size, tasks=(mlp(n, n),))),
    "depth": ((1, 4, 8), lambda size, n: dataclasses.replace(size, tasks=(mlp(*[32] * n),))),
    "families": (
        (2, 3),
        lambda size, n: dataclasses.replace(size, tasks=tuple(make() for make in FAMILIES[:n])),
    ),
}
"""What grows, to which values, and how."""

BASE = {"pairs": 16, "window": 50, "horizon": 500, "width": 32, "depth": 2, "families": 1}


@dataclass(frozen=True)
class Options:
    """Times outer steps of meta-trainings that differ in one size."""

    design: str = "adafac_mlp"
    """Name from `l2o list`."""
    sizes: tuple[str, ...] = tuple(GROWTH)
    """What grows."""
    rounds: int = 5
    """Turns of each program."""


def learner_of(size: Size, design: str) -> tuple[Learner, Any]:
    """A learner of this size, and where it starts."""
    lopt = DESIGNS[design]()
    mesh = population_mesh(jax.device_count())
    problems = {
        task.name: inner_problem(task, lopt, horizon=size.horizon, window=size.window)
        for task in size.tasks
    }
    estimators = {
        name: pes(problem, num_pairs=size.pairs, std=0.01, mesh=mesh)
        for name, problem in problems.items()
    }
    return gradient_learner(average_estimators(estimators), optax.adam(1e-3)), lopt.init(
        jax.random.key(0)
    )


def main(options: Options) -> None:
    """Measures, prints a table and writes JSON."""
    console = wide_console()
    processes.use_cpu_cores(len(processes.cores()))
    about = environment()
    found, first = meta_training(*learner_of(Size(), options.design))
    base = lasting(found, seconds=0.5)
    rows = []
    for name in options.sizes:
        values, change = GROWTH[name]
        at_base = {"size": name, "value": BASE[name], "relative_speed": 1.0}
        rows.append(at_base | first)
        for value in values:
            console.print(f"{name} {value}", highlight=False)
            program, row = meta_training(*learner_of(change(Size(), value), options.design))
            times = take_turns({"base": base, "": lasting(program, 0.5)}, options.rounds)
            speed = times["base"].over(times[""])["ratio"]
            rows.append({"size": name, "value": value, "relative_speed": speed} | row)
            del program
    path = write("growth", {"environment": about, "design": options.design, "rows": rows})
    console.print(table(rows))
    console.print(str(path), highlight=False)


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows, to look at."""
    shown = Table(title="As one size grows")
    for column in ("", "value", "steps/s over base", "state MB", "temp MB", "first step s"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in sorted(rows, key=lambda row: (list(GROWTH).index(row["size"]), row["value"])):
        shown.add_row(
            row["size"],
            f"{row['value']:,}",
            f"{row['relative_speed']:.2f}",
            f"{row['argument_megabytes']:.1f}",
            f"{row['temporary_megabytes']:.1f}",
            f"{row['first_step_seconds']:.1f}",
        )
    return shown


if __name__ == "__main__":
    main(tyro.cli(Options))
