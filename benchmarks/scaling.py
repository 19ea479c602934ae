"""How meta-training scales over CPU devices and processes, on the cores of this machine.

`python benchmarks/scaling.py` times outer steps of NominalMLP under PES on one network of
`digits_mlp`, in one process with N virtual devices on N cores and in N processes pinned to one core
each. Strong scaling keeps the population, weak scaling lets it grow with N. Throughput is in inner
steps a second; efficiency is its ratio to one process on one core, over N.

All layouts stay up and take turns, so that what else the machine does hits all alike. A figure is
the median over repetitions, with the lowest and the highest.
"""

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import optax
import tyro
from measuring import environment
from rich import box
from rich.console import Console
from rich.table import Table

from l2o.distributed import processes, transfer
from l2o.distributed.launchers import ProcessSpec
from l2o.distributed.mesh import population_mesh
from l2o.estimators.pes import pes
from l2o.learner import gradient_learner
from l2o.optimizers.nominal_mlp import nominal_mlp
from l2o.outer_loop import chunk_of
from l2o.problem import inner_problem
from l2o.runs.compilation import long_running
from l2o.runs.folder import atomic_write
from l2o.tasks.digits import digits_mlp

RESULT = "result "
"""What a line of a child starts with; others are Gloo's."""


@dataclass(frozen=True)
class Options:
    """Times outer steps on every layout of this machine's cores."""

    pairs: int = 16
    """Antithetic pairs on one core; of all layouts in strong scaling."""
    window: int = 50
    """Inner steps between two outer steps."""
    outer_steps: int = 5
    """Outer steps of one measurement."""
    repetitions: int = 7
    """Measurements of each layout."""
    cores: int | None = None
    """Most cores to use; all that this process may if not given."""
    out: Path = Path("benchmarks/results/scaling.json")
    """Where the figures go."""


@dataclass(frozen=True)
class Layout:
    """Processes, the devices and cores of each, and the population of all."""

    scaling: str
    processes: int
    devices: int
    pairs: int

    @property
    def cores(self) -> int:
        """How many cores it uses."""
        return self.processes * self.devices


def layouts(options: Options) -> list[Layout]:
    """One core, then 2, 4, ... cores as devices and as processes, strong and weak.

    Raises:
        ValueError: if there are fewer cores, or they cannot share the pairs.
    """
    present = len(processes.cores())
    most = options.cores or present
    if most > present:
        raise ValueError(f"`cores` must be at most the {present} here; got {most}.")
    largest = 2 ** (most.bit_length() - 1)
    if options.pairs % largest:
        raise ValueError(f"`pairs` must be a multiple of {largest}; got {options.pairs}.")
    found = [Layout("one core", 1, 1, options.pairs)]
    cores = 2
    while cores <= most:
        for scaling, pairs in (("strong", options.pairs), ("weak", cores * options.pairs)):
            found.append(Layout(scaling, 1, cores, pairs))
            found.append(Layout(scaling, cores, 1, pairs))
        cores *= 2
    return found


def child(layout: Layout, options: Options, process: ProcessSpec | None) -> None:
    """Compiles a chunk of outer steps; then takes and reports one for each line on stdin."""
    with processes.connected(process, agreed=asdict(layout), num_devices=layout.cores):
        mesh = population_mesh(layout.cores)
        lopt, task = nominal_mlp(), digits_mlp().train[0]
        problem = inner_problem(task, lopt, horizon=10 * options.window, window=options.window)
        estimator = pes(problem, num_pairs=layout.pairs, std=0.01, mesh=mesh)
        learner = gradient_learner(estimator, optax.adam(1e-3))
        key = jax.random.key(0)
        state = jax.jit(learner.init)(key, lopt.init(key))
        chunk = jax.jit(chunk_of(learner, options.outer_steps))
        compiled = chunk.lower(key, state, learner.data).compile(long_running())
        layout_of = compiled.input_shardings[0]
        key, state, data = transfer.place((key, state, learner.data), layout_of)
        for _ in sys.stdin:
            started = time.perf_counter()
            state, metrics = compiled(key, state, data)
            jax.block_until_ready((state, metrics))
            seconds = time.perf_counter() - started
            state = transfer.place(state, layout_of[1])
            print(f"{RESULT}{options.outer_steps * learner.steps / seconds}", flush=True)


@contextlib.contextmanager
def running(layout: Layout, options: Options) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a layout, each pinned to its cores, until their stdin is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    cores = processes.cores()
    children: list[subprocess.Popen[str]] = []
    try:
        for i in range(layout.processes):
            member = (
                ProcessSpec("flags", address, layout.processes, i) if layout.processes > 1 else None
            )
            work = {
                "layout": asdict(layout),
                "options": asdict(options) | {"out": ""},
                "member": member and asdict(member),
            }
            mine = cores[i * layout.devices : (i + 1) * layout.devices]
            os.sched_setaffinity(0, mine)  # which the child inherits
            try:
                children.append(
                    subprocess.Popen(
                        [sys.executable, __file__, "--child", json.dumps(work)],
                        env=os.environ | {"JAX_PLATFORMS": "cpu"},
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                )
            finally:
                os.sched_setaffinity(0, cores)
        yield children
        for each in children:  # all of them first: each waits for the others
            assert each.stdin is not None
            each.stdin.close()
        for each in children:
            each.wait(timeout=120)
    finally:
        for each in children:
            each.kill()
            each.wait()


def measure(children: Sequence[subprocess.Popen[str]]) -> float:
    """Inner steps a second of one chunk, as process 0 measures it."""
    for each in children:
        assert each.stdin is not None
        each.stdin.write("go\n")
        each.stdin.flush()
    first, *_ = [_answer(each) for each in children]
    return first


def _answer(one: subprocess.Popen[str]) -> float:
    assert one.stdout is not None
    for line in one.stdout:
        if line.startswith(RESULT):
            return float(line.removeprefix(RESULT))
    raise RuntimeError(f"a child ended with status {one.wait()}; what it says is above")


def run(options: Options, console: Console) -> dict[str, Any]:
    """Measures every layout; returns what the JSON file holds."""
    found = layouts(options)
    seen: list[list[float]] = [[] for _ in found]
    with contextlib.ExitStack() as stack:
        groups = []
        for layout in found:
            console.print(f"compiling for {in_words(layout)}", highlight=False)
            groups.append(stack.enter_context(running(layout, options)))
            measure(groups[-1])  # the first one is for warming up
        for number in range(options.repetitions):
            console.print(f"repetition {number + 1} of {options.repetitions}", highlight=False)
            for group, rates in zip(groups, seen, strict=True):
                rates.append(measure(group))
    one_core = statistics.median(seen[0])
    rows = [
        asdict(layout)
        | {
            "cores": layout.cores,
            "inner_steps_per_second": statistics.median(rates),
            "lowest": min(rates),
            "highest": max(rates),
            "ratio_to_one_core": statistics.median(rates) / one_core,
            "efficiency": statistics.median(rates) / one_core / layout.cores,
        }
        for layout, rates in zip(found, seen, strict=True)
    ]
    return {
        "environment": environment(),
        "options": {k: v for k, v in asdict(options).items() if k != "out"},
        "rows": rows,
    }


def in_words(layout: Layout) -> str:
    """`2 processes x 1 device, 32 pairs`."""
    count = lambda n, word: f"{n} {word}" + ("es" if word == "process" else "s") * (n > 1)
    return (
        f"{count(layout.processes, 'process')} x {count(layout.devices, 'device')}, "
        f"{layout.pairs} pairs"
    )


def table(result: dict[str, Any]) -> Table:
    """The rows, to look at."""
    shown = Table(title="Inner steps a second", box=box.SIMPLE, padding=(0, 1, 0, 0))
    shown.add_column("scaling", no_wrap=True)
    for title in ("processes", "cores", "pairs", "median", "range", "ratio", "efficiency"):
        shown.add_column(title, justify="right", no_wrap=True)
    for row in result["rows"]:
        shown.add_row(
            row["scaling"],
            str(row["processes"]),
            str(row["cores"]),
            str(row["pairs"]),
            f"{row['inner_steps_per_second']:,.0f}",
            f"{row['lowest']:,.0f}-{row['highest']:,.0f}",
            f"{row['ratio_to_one_core']:.2f}",
            f"{row['efficiency']:.0%}",
        )
    return shown


def main() -> None:
    """Runs the benchmark, or is one of its children."""
    if sys.argv[1:2] == ["--child"]:
        work = json.loads(sys.argv[2])
        member = ProcessSpec(**work["member"]) if work["member"] else None
        child(Layout(**work["layout"]), Options(**work["options"]), member)
        return
    options = tyro.cli(Options)
    console = Console()
    try:
        layouts(options)
    except ValueError as error:
        sys.exit(f"error: {error}")
    result = run(options, console)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(options.out, (json.dumps(result, indent=2) + "\n").encode())
    console.print(table(result))
    console.print(str(options.out), soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
