"""How fast meta-training is: every estimator with three designs, beside plain training by Adam.

`python benchmarks/throughput.py` meta-trains on digits (an MLP 64-32-32-10, batches of 64, 16
antithetic pairs or 32 members, windows of 50) and on quadratics of dimension 10 (64 pairs), on
all cores; `--tasks conv transformer` are a conv net of 8 and 16 channels on the same images and a
byte-level transformer of width 16. The yardstick is the same inner training under `optax.adam` with
no meta-training about it: as many runs, vmapped, in one scan, split over the same devices. A figure
is an estimator's inner steps a second over the yardstick's, round by round. Time to the first step
is tracing and compiling a chunk of one outer step, and running it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import optax
import tyro
from jax.sharding import Mesh
from measuring import Program, environment, take_turns, wide_console, write
from rich.console import Console
from rich.table import Table

from l2o.distributed import processes, transfer
from l2o.distributed.mesh import check_divides, population_mesh, shard_population
from l2o.estimators.estimator import Estimator
from l2o.learner import Learner, gradient_learner
from l2o.outer_loop import chunk_of
from l2o.problem import Problem, inner_problem
from l2o.registry import BACKPROP, DESIGNS, ESTIMATORS, tasks_to_evaluate
from l2o.runs.compilation import long_running
from l2o.task import Task
from l2o.tasks.digits import digits
from l2o.tasks.image_mlp import image_mlp
from l2o.tasks.quadratic import rotated_quadratic

YARDSTICK = "adam, no meta-training"
WINDOW = 50


@dataclass(frozen=True)
class Options:
    """Times outer steps of every estimator with every design."""

    tasks: tuple[str, ...] = ("digits", "quadratic")
    """Which inner problems."""
    estimators: tuple[str, ...] = tuple(ESTIMATORS)
    """Names from `l2o list`."""
    designs: tuple[str, ...] = ("learnable_adam", "mlp_lopt", "adafac_mlp")
    """Names from `l2o list`."""
    rounds: int = 7
    """Turns of each program."""
    seconds: float = 0.3
    """About how long a turn is."""
    pairs: int | None = None
    """Antithetic pairs; those of the task if not given."""
    horizon: int = 500
    """Inner steps of a run."""
    devices: int | None = None
    """How many; all if not given."""


@dataclass(frozen=True)
class Setting:
    """What is trained, and by how many."""

    task: Task
    pairs: int
    horizon: int
    mesh: Mesh


SETTINGS: Mapping[str, Callable[[], tuple[Task, int]]] = {
    "digits": lambda: (image_mlp("digits_mlp_32x32", digits(), (32, 32)), 16),
    "quadratic": lambda: (rotated_quadratic(10), 64),
    "conv": lambda: (tasks_to_evaluate(("digits_conv_8x16",))[0], 16),
    "transformer": lambda: (tasks_to_evaluate(("python_transformer_16x1",))[0], 16),
}


def estimator_of(name: str, problem: Problem, setting: Setting) -> Estimator:
    """An estimator whose population is `2 * setting.pairs` runs."""
    if name in BACKPROP:
        return ESTIMATORS[name](problem, num_members=2 * setting.pairs, mesh=setting.mesh)
    pairs = setting.pairs // 2 if name == "variance_weighted" else setting.pairs
    return ESTIMATORS[name](problem, num_pairs=pairs, std=0.01, mesh=setting.mesh)


def learner_of(estimator: str, design: str, setting: Setting) -> tuple[Learner, Any]:
    """A learner, and where it starts."""
    lopt = DESIGNS[design]()
    problem = inner_problem(setting.task, lopt, horizon=setting.horizon, window=WINDOW)
    found = estimator_of(estimator, problem, setting)
    return gradient_learner(found, optax.adam(1e-3)), lopt.init(jax.random.key(0))


def meta_training(learner: Learner, theta: Any) -> tuple[Program, dict[str, Any]]:
    """One outer step, again and again, and what it needs."""
    started = time.perf_counter()
    key = jax.random.key(1)
    state = jax.jit(learner.init)(key, theta)
    jitted = jax.jit(chunk_of(learner, 1), donate_argnums=1)
    compiled = jitted.lower(key, state, learner.data).compile(long_running())
    layout = compiled.input_shardings[0]
    key, first, data = transfer.place((key, state, learner.data), layout)
    carry = [first]

    def run() -> None:
        carry[0], metrics = compiled(key, carry[0], data)
        jax.block_until_ready(metrics)
        carry[0] = transfer.place(carry[0], layout[1])

    run()
    row = {"first_step_seconds": time.perf_counter() - started} | memory_of(compiled)
    return Program(run, work=learner.steps), row


def memory_of(compiled: Any) -> dict[str, Any]:
    """Megabytes of a compiled program on one device, as XLA says."""
    memory = compiled.memory_analysis()
    return {
        "argument_megabytes": memory.argument_size_in_bytes / 1e6,
        "temporary_megabytes": memory.temp_size_in_bytes / 1e6,
    }


def plain_training(setting: Setting) -> tuple[Program, dict[str, Any]]:
    """A window of training by Adam, again and again: `2 * setting.pairs` runs, no theta."""
    task, tx = setting.task, optax.adam(1e-3)

    def start(key):
        k_instance, k_params = jax.random.split(key)
        instance = task.sample(k_instance)
        params = task.init(k_params, instance)
        return instance, params, tx.init(params)

    def window(key, run, data):
        instance, params, opt_state = run

        def step(carry, k_batch):
            params, opt_state = carry
            batch = task.batch(k_batch, instance, data, "train")
            loss, grads = jax.value_and_grad(task.loss)(params, batch, instance)
            updates, opt_state = tx.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), loss

        keys = jax.random.split(key, WINDOW)
        (params, opt_state), losses = jax.lax.scan(step, (params, opt_state), keys)
        return (instance, params, opt_state), losses.mean()

    def members(indices, runs, key, data):
        keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
        runs, losses = jax.vmap(window, (0, 0, None))(keys, runs, data)
        return runs, losses.sum()

    size = 2 * setting.pairs
    started = time.perf_counter()
    check_divides(size, setting.mesh)
    spread = shard_population(members, setting.mesh)
    key, indices = jax.random.key(0), jax.numpy.arange(size)
    runs = jax.jit(jax.vmap(start))(jax.random.split(key, size))
    lowered = jax.jit(spread, donate_argnums=1).lower(indices, runs, key, task.data)
    compiled = lowered.compile(long_running())
    layout = compiled.input_shardings[0]
    indices, first, key, data = transfer.place((indices, runs, key, task.data), layout)
    carry = [first]

    def run() -> None:
        carry[0], loss = compiled(indices, carry[0], key, data)
        jax.block_until_ready(loss)

    run()
    row = {"first_step_seconds": time.perf_counter() - started} | memory_of(compiled)
    return Program(run, work=size * WINDOW), row


def lasting(program: Program, seconds: float) -> Program:
    """The program, repeated until a turn lasts about so long."""
    started = time.perf_counter()
    program.run()
    return replace(program, repeats=max(1, round(seconds / (time.perf_counter() - started))))


def measure(name: str, options: Options, console: Console) -> Iterator[dict[str, Any]]:
    """The rows of one task, as they come: the yardstick runs in turn with each program."""
    task, pairs = SETTINGS[name]()
    mesh = population_mesh(options.devices or jax.device_count())
    setting = Setting(task, options.pairs or pairs, options.horizon, mesh)
    found, row = plain_training(setting)
    yardstick = lasting(found, options.seconds)
    yield (
        {"task": name, "estimator": YARDSTICK, "design": "adam"}
        | row
        | figures(take_turns({YARDSTICK: yardstick}, 3), YARDSTICK)
    )
    for estimator in options.estimators:
        for design in options.designs:
            console.print(f"{name}: {estimator} {design}", highlight=False)
            found, row = meta_training(*learner_of(estimator, design, setting))
            programs = {YARDSTICK: yardstick, "": lasting(found, options.seconds)}
            times = take_turns(programs, options.rounds)
            yield (
                {"task": name, "estimator": estimator, "design": design} | row | figures(times, "")
            )
            del found, programs


def figures(times: Mapping[str, Any], name: str) -> dict[str, float]:
    """Inner steps a second, and over the yardstick's."""
    over = times[YARDSTICK].over(times[name])
    return {"inner_steps_per_second": 1.0 / times[name].median} | over


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows, to look at."""
    shown = Table(title="Inner steps a second")
    for column in ("task", "estimator", "design"):
        shown.add_column(column, no_wrap=True)
    for column in ("steps/s", "over adam's", "range", "first step s", "temp MB"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
            row["task"],
            row["estimator"],
            row["design"],
            f"{row['inner_steps_per_second']:,.0f}",
            f"{row['ratio']:.2f}",
            f"{row['lowest']:.2f}-{row['highest']:.2f}",
            f"{row['first_step_seconds']:.1f}",
            f"{row['temporary_megabytes']:.0f}",
        )
    return shown


def main(options: Options) -> None:
    """Measures, prints a table and writes JSON."""
    console = wide_console()
    processes.use_cpu_cores(options.devices or len(processes.cores()))
    about = environment()
    found: dict[str, Any] = {"environment": about, "cores": len(processes.cores()), "rows": []}
    for name in options.tasks:
        for row in measure(name, options, console):
            found["rows"].append(row)
            path = write("throughput", found)  # after each, as some take minutes
            console.print(f"{path}: {len(found['rows'])} rows", highlight=False)
    console.print(table(found["rows"]))


if __name__ == "__main__":
    main(tyro.cli(Options))
