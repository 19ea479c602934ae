"""What one update costs: every design beside `optax.adam`, on three trees of parameters.

`python benchmarks/update_cost.py` times `tx.update` with `optax.apply_updates`, state and
parameters donated, as a training step does it. A figure is the time over Adam's, round by round.
Temporary memory is what XLA says of the compiled program. The yardstick uses all cores that XLA
gives it, and so do the designs.

The trees are shaped like an MLP (784-128-128-10), a transformer of 10 million parameters in 32
leaves, and GPT-2 small (124 million in 148 leaves). On the last one every design is compiled, and
timed if `--memory` suffices.
"""

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from measuring import Program, environment, take_turns, wide_console, write
from rich.console import Console
from rich.table import Table

from l2o.registry import DESIGNS

YARDSTICK = "adam"
HORIZON = 1000


@dataclass(frozen=True)
class Options:
    """Times one update of every design on every tree."""

    designs: tuple[str, ...] = ("muon", *DESIGNS)
    """Names from `l2o list`, and muon, which is optax's."""
    trees: tuple[str, ...] = ("mlp", "transformer", "gpt2_small")
    """Which trees."""
    rounds: int = 9
    """Turns of each program on the small trees; three on the largest."""
    memory: float = 12.0
    """GB that a program may need to be run."""


def mlp(sizes: tuple[int, ...] = (784, 128, 128, 10)) -> dict[str, tuple[int, ...]]:
    """Shapes of an MLP's parameters."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"w{i}": (inputs, outputs), f"b{i}": (outputs,)}
    return shapes


def transformer(width: int = 512, layers: int = 3, vocabulary: int = 1024) -> dict[str, Any]:
    """Shapes of a transformer without biases of its matrices: ten leaves a layer, and two."""
    matrices = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    vectors = dict.fromkeys(("scale_1", "shift_1", "scale_2", "shift_2"), (width,))
    layer = matrices | vectors | {"up": (width, 4 * width), "down": (4 * width, width)}
    blocks = {f"layer_{i}": layer for i in range(layers)}
    return blocks | {"embedding": (vocabulary, width), "scale": (width,)}


def gpt2_small(width: int = 768, layers: int = 12) -> dict[str, Any]:
    """Shapes of GPT-2 small: twelve leaves a layer, and four."""
    layer = {
        **{f"norm_{i}_{part}": (width,) for i in (1, 2) for part in ("scale", "shift")},
        "attention": (width, 3 * width),
        "attention_bias": (3 * width,),
        "projection": (width, width),
        "projection_bias": (width,),
        "up": (width, 4 * width),
        "up_bias": (4 * width,),
        "down": (4 * width, width),
        "down_bias": (width,),
    }
    blocks = {f"layer_{i}": layer for i in range(layers)}
    ends = {"tokens": (50257, width), "positions": (1024, width)}
    return blocks | ends | {"scale": (width,), "shift": (width,)}


TREES: Mapping[str, Callable[[], dict[str, Any]]] = {
    "mlp": mlp,
    "transformer": transformer,
    "gpt2_small": gpt2_small,
}


def optimizer(name: str) -> optax.GradientTransformationExtraArgs:
    """The yardstick, or an untrained design; both cost what they cost with any theta."""
    if name == YARDSTICK:
        return optax.with_extra_args_support(optax.adam(1e-3))
    if name == "muon":
        return optax.with_extra_args_support(optax.contrib.muon(1e-3, consistent_rms=0.2))
    lopt = DESIGNS[name]()
    return lopt.transform(lopt.init(jax.random.key(0)), horizon=HORIZON)


def training_step(tx: optax.GradientTransformationExtraArgs):
    """`(grads, state, params) -> (state, params)`: an update, applied."""

    def step(grads, state, params):
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        return state, optax.apply_updates(params, updates)

    return step


def compiled_step(name: str, shapes: Any) -> tuple[dict[str, Any], Any]:
    """A row of figures that need no run, and the compiled step."""
    tx = optimizer(name)
    params = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), shapes, is_leaf=is_shape
    )
    num_parameters = size(params)
    state = jax.eval_shape(tx.init, params)
    jitted = jax.jit(training_step(tx), donate_argnums=(1, 2))
    started = time.perf_counter()
    lowered = jitted.lower(params, state, params)
    traced = time.perf_counter()
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    temporary = 0 if memory is None else memory.temp_size_in_bytes
    arguments = 0 if memory is None else memory.argument_size_in_bytes
    row = {
        "design": name,
        "parameters": num_parameters,
        "leaves": len(jax.tree.leaves(params)),
        "state_bytes_per_parameter": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
        / num_parameters,
        "temporary_bytes_per_parameter": temporary / num_parameters,
        "gigabytes": (temporary + arguments) / 1e9,
        "trace_seconds": traced - started,
        "compile_seconds": time.perf_counter() - traced,
    }
    return row, compiled


def is_shape(x: Any) -> bool:
    """Whether something in a tree of shapes is a shape."""
    return isinstance(x, tuple)


def size(tree: Any) -> int:
    """Numbers in a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_tree(shapes: Any, scale: float, seed: int) -> Any:
    """Normal numbers, the same ones each time."""
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(scale * rng.standard_normal(shape, np.float32))
    return jax.tree.map(draw, shapes, is_leaf=is_shape)


def as_program(name: str, compiled: Any, grads: Any, params: Any, repeats: int) -> Program:
    """A step that goes on from where it ended."""
    carry = [jax.jit(optimizer(name).init)(params), jax.tree.map(jnp.copy, params)]

    def run() -> None:
        carry[:] = jax.block_until_ready(compiled(grads, *carry))

    return Program(run, work=size(params), repeats=repeats)


def measure(tree: str, options: Options, console: Console) -> list[dict[str, Any]]:
    """The rows of one tree."""
    shapes = TREES[tree]()
    found = {}
    for name in (YARDSTICK, *options.designs):
        console.print(f"{tree}: compiling {name}", highlight=False)
        found[name] = compiled_step(name, shapes)
    runs = {k: v for k, v in found.items() if v[0]["gigabytes"] <= options.memory}
    is_large = found[YARDSTICK][0]["parameters"] > 5e7
    grads, params = random_tree(shapes, 0.01, seed=0), random_tree(shapes, 0.05, seed=1)
    if is_large:  # one at a time beside the yardstick, for the memory
        times = {}
        yardstick = as_program(YARDSTICK, runs[YARDSTICK][1], grads, params, repeats=1)
        for name in runs:
            if name != YARDSTICK:
                program = as_program(name, runs[name][1], grads, params, repeats=1)
                pair = take_turns({YARDSTICK: yardstick, name: program}, rounds=3)
                times[name] = (pair[name], pair[YARDSTICK])
                times[YARDSTICK] = (pair[YARDSTICK], pair[YARDSTICK])
                del program
    else:
        repeats = max(1, round(1e6 / found[YARDSTICK][0]["parameters"]))
        programs = {
            name: as_program(name, compiled, grads, params, repeats)
            for name, (_, compiled) in runs.items()
        }
        turns = take_turns(programs, options.rounds)
        times = {name: (each, turns[YARDSTICK]) for name, each in turns.items()}
    rows = []
    for name, (row, _) in found.items():
        timed = times.get(name)
        rows.append(
            {"tree": tree}
            | row
            | (
                {}
                if timed is None
                else {"ns_per_parameter": 1e9 * timed[0].median} | timed[0].over(timed[1])
            )
        )
    return rows


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows, to look at."""
    shown = Table(title="One update")
    for column in ("tree", "design"):
        shown.add_column(column, no_wrap=True)
    for column in ("ns/param", "over adam", "range", "state B", "temp B", "trace s", "compile s"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        is_timed = "ratio" in row
        shown.add_row(
            row["tree"],
            row["design"],
            f"{row['ns_per_parameter']:.1f}" if is_timed else "not run",
            f"{row['ratio']:.1f}" if is_timed else "",
            f"{row['lowest']:.1f}-{row['highest']:.1f}" if is_timed else "",
            f"{row['state_bytes_per_parameter']:.1f}",
            f"{row['temporary_bytes_per_parameter']:.1f}",
            f"{row['trace_seconds']:.1f}",
            f"{row['compile_seconds']:.1f}",
        )
    return shown


def main(options: Options) -> None:
    """Measures, prints a table and writes JSON."""
    console = wide_console()
    about = environment()
    rows = [row for tree in options.trees for row in measure(tree, options, console)]
    path = write("update_cost", {"environment": about, "rows": rows})
    console.print(table(rows))
    console.print(str(path), highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Options))
