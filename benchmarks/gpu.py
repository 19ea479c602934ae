"""On a GPU: what can only break there, updates, meta-training, and the step of a ViT and a GPT.

`python benchmarks/gpu.py --parts checks meta_training` runs parts, each of which writes a file of
its own, `gpu_PART.json`, row by row, so that a run that is cut short leaves what it had.

- `checks`: an outer step of PES with every design, PPO, and a resumed run that must give the same
  theta as one that was not interrupted.
- `meta_training`: inner steps a second under PES over those of plain training by Adam, for several
  populations (`throughput.py`).
- `training`: a training step of two networks in Flax with every design beside `optax.adamw`.
- `updates`: `update_cost.py`, with the time that the bytes of an update alone would take at
  `--bandwidth`.

`--small` shrinks all of it, to try the script on a CPU.
"""

import contextlib
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import throughput
import tyro
import update_cost
from flax import nnx
from measuring import Program, environment, take_turns, wide_console, write
from rich.console import Console
from safetensors.numpy import load_file

from l2o.cli import main as cli
from l2o.distributed.mesh import population_mesh

YARDSTICK = "adamw"


Part = Literal["checks", "meta_training", "training", "updates"]
Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Options:
    """Times parts of what a GPU is for, on the first device."""

    parts: tuple[Part, ...] = ("checks", "meta_training", "training", "updates")
    """Which, in this order."""
    designs: tuple[str, ...] = update_cost.Options().designs
    """Names from `l2o list`; of `checks`, `training` and `updates`."""
    tasks: tuple[str, ...] = ("digits",)
    """Of `meta_training`; see `throughput.py`."""
    meta_trained: tuple[str, ...] = ("learnable_adam", "adafac_mlp")
    """Designs of `meta_training`."""
    pairs: tuple[int, ...] = (128, 512, 2048, 4096)
    """Antithetic pairs of `meta_training`."""
    trees: tuple[str, ...] = update_cost.Options().trees
    """Trees of parameters of `updates`."""
    bandwidth: float | None = None
    """Gigabytes a second that the device can move, for the roofline; none if not given."""
    small: bool = False
    """Sizes that a CPU can train."""
    rounds: int = 5
    """Turns of each program."""


@dataclass(frozen=True)
class Shape:
    """Of a transformer and its batches."""

    width: int = 384
    layers: int = 6
    heads: int = 6
    length: int = 256
    batch: int = 32
    vocabulary: int = 8192

    @property
    def small(self) -> "Shape":
        """One that a CPU can train."""
        return replace(self, width=64, layers=2, heads=2, length=32, batch=4, vocabulary=256)


class Block(nnx.Module):
    """Attention and an MLP, both with a norm before them."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.norms = nnx.List([nnx.LayerNorm(shape.width, rngs=rngs) for _ in range(2)])
        self.attention = nnx.MultiHeadAttention(shape.heads, shape.width, rngs=rngs, decode=False)
        self.up = nnx.Linear(shape.width, 4 * shape.width, rngs=rngs)
        self.down = nnx.Linear(4 * shape.width, shape.width, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Shape (batch, length, width) to the same."""
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(jax.nn.gelu(self.up(self.norms[1](x))))


class GPT(nnx.Module):
    """Predicts the next of a row of tokens."""

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.tokens = nnx.Embed(shape.vocabulary, shape.width, rngs=rngs)
        self.positions = nnx.Embed(shape.length, shape.width, rngs=rngs)
        self.blocks = nnx.List([Block(shape, rngs) for _ in range(shape.layers)])
        self.norm = nnx.LayerNorm(shape.width, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens of shape (batch, length) to logits."""
        x = self.tokens(tokens) + self.positions(jnp.arange(tokens.shape[1]))
        mask = nnx.make_causal_mask(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.tokens.attend(self.norm(x))


class ViT(nnx.Module):
    """Classifies images by their patches."""

    classes = 1000

    def __init__(self, shape: Shape, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Linear(16 * 16 * 3, shape.width, rngs=rngs)
        self.positions = nnx.Embed(shape.length, shape.width, rngs=rngs)
        self.blocks = nnx.List([Block(shape, rngs) for _ in range(shape.layers)])
        self.norm = nnx.LayerNorm(shape.width, rngs=rngs)
        self.head = nnx.Linear(shape.width, self.classes, rngs=rngs)

    def __call__(self, patches: jax.Array) -> jax.Array:
        """Patches of shape (batch, length, 768) to logits."""
        x = self.patches(patches) + self.positions(jnp.arange(patches.shape[1]))
        for block in self.blocks:
            x = block(x, None)
        return self.head(jnp.mean(self.norm(x), axis=1))


def gpt_task(shape: Shape) -> tuple[nnx.Module, Any, jax.Array]:
    """A GPT, a batch of tokens, and what follows each."""
    tokens = jax.random.randint(
        jax.random.key(0), (shape.batch, shape.length + 1), 0, shape.vocabulary
    )
    return GPT(shape, nnx.Rngs(0)), tokens[:, :-1], tokens[:, 1:]


def vit_task(shape: Shape) -> tuple[nnx.Module, Any, jax.Array]:
    """A ViT, a batch of patches, and labels."""
    shape = replace(shape, length=min(shape.length, 196))
    patches = jax.random.normal(jax.random.key(0), (shape.batch, shape.length, 768))
    labels = jax.random.randint(jax.random.key(1), (shape.batch,), 0, ViT.classes)
    return ViT(shape, nnx.Rngs(0)), patches, labels


NETWORKS: Mapping[str, Callable[[Shape], tuple[nnx.Module, Any, jax.Array]]] = {
    "gpt": gpt_task,
    "vit": vit_task,
}


def optimizer(name: str) -> optax.GradientTransformationExtraArgs:
    """The yardstick or an untrained design."""
    if name == YARDSTICK:
        return optax.with_extra_args_support(optax.adamw(1e-3))
    return update_cost.optimizer(name)


def training_program(name: str, network: str, shape: Shape) -> Program:
    """A training step of a network, again and again."""
    model, inputs, labels = NETWORKS[network](shape)
    graph, params = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(params)
    tx = optimizer(name)

    def step(state, params, inputs, labels):
        def loss_fn(params):
            logits = nnx.merge(graph, params)(inputs)
            return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = tx.update(grads, state, params, value=loss)
        return state, optax.apply_updates(params, updates)

    state = jax.jit(tx.init)(params)
    arguments = (state, params, inputs, labels)
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
    carry = [state, params]

    def run() -> None:
        carry[:] = jax.block_until_ready(compiled(*carry, inputs, labels))

    return Program(run, work=1.0, repeats=5)


def training(options: Options, console: Console) -> Rows:
    """Milliseconds of a training step, and over AdamW's."""
    shape = Shape().small if options.small else Shape()
    for network in NETWORKS:
        yardstick = training_program(YARDSTICK, network, shape)
        for name in options.designs:
            console.print(f"{network}: compiling {name}", highlight=False)
            programs = {YARDSTICK: yardstick, name: training_program(name, network, shape)}
            times = take_turns(programs, options.rounds)
            found = times[name]
            row = {"network": network, "design": name, "milliseconds": 1e3 * found.median}
            yield (
                row
                | {"yardstick_milliseconds": 1e3 * times[YARDSTICK].median}
                | found.over(times[YARDSTICK])
            )
            del programs


def roofline(row: Mapping[str, Any], bandwidth: float) -> float:
    """Nanoseconds a parameter that moving an update's bytes takes at least.

    Gradient, parameter and state are read, parameter and state written.
    """
    return (4.0 + 2.0 * 4.0 + 2.0 * row["state_bytes_per_parameter"]) / bandwidth


def updates(options: Options, console: Console) -> Rows:
    """What `update_cost.py` finds, with the roofline."""
    settings = update_cost.Options(designs=options.designs, rounds=options.rounds, memory=60.0)
    for tree in ("mlp",) if options.small else options.trees:
        for row in update_cost.measure(tree, settings, console):
            yield row | (
                {"roofline_ns": roofline(row, options.bandwidth)} if options.bandwidth else {}
            )


def meta_training(options: Options, console: Console) -> Rows:
    """What `throughput.py` finds for PES, population by population."""
    tasks, populations = options.tasks, options.pairs
    if options.small:
        tasks, populations = ("quadratic",), (8,)
    for task, pairs in itertools.product(tasks, populations):
        settings = throughput.Options(
            estimators=("pes",),
            designs=options.meta_trained,
            rounds=options.rounds,
            pairs=pairs,
            devices=1,
        )
        for row in throughput.measure(task, settings, console):
            yield row | {"population": 2 * pairs}


def checks(options: Options, console: Console) -> Rows:
    """One row for each thing that was done; raises where something is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        whole, resumed, ppo = (Path(folder) / name for name in ("whole", "resumed", "ppo"))
        short = ["meta-train", "smoke", "--no-evaluate", "--quiet"]
        policy = ["--optimizer", "scheduler", "--log-every", "2", "--horizon", "100"]
        policy += ["--window", "50", "ppo"]
        for name, flags, run in (
            ("ppo, two outer steps", ["--steps", "2", *policy], ppo),
            ("twenty outer steps of PES", [], whole),
        ):
            started = time.perf_counter()
            run_command([*short, *flags, "--run-dir", str(run)])
            yield {"check": name, "seconds": time.perf_counter() - started}
        shutil.copytree(whole, resumed)
        for left in (resumed / "checkpoints").iterdir():
            if left.name.endswith("20"):
                shutil.rmtree(left)
        (resumed / "theta.safetensors").unlink()
        started = time.perf_counter()
        run_command([*short, "--run-dir", str(resumed), "--resume"])
        seconds = time.perf_counter() - started
        first, second = (load_file(run / "theta.safetensors") for run in (whole, resumed))
        largest = max(float(abs(first[name] - second[name]).max()) for name in first)
        yield {"check": "resumed at 10 of 20", "seconds": seconds, "largest_difference": largest}
        if largest != 0.0:
            raise RuntimeError(f"a resumed run gave another theta, by {largest}")
    task, _ = throughput.SETTINGS["quadratic" if options.small else "digits"]()
    setting = throughput.Setting(task, 4, 100, population_mesh(1))
    for design in options.designs:
        console.print(f"an outer step of {design}", highlight=False)
        program, row = throughput.meta_training(*throughput.learner_of("pes", design, setting))
        del program
        yield {"check": f"pes step of {design}", "seconds": row["first_step_seconds"]}


def run_command(arguments: list[str]) -> None:
    """One command line of l2o, in this process."""
    with contextlib.chdir(Path(__file__).parents[1]):
        status = cli.main(arguments)
    if status:
        raise RuntimeError(f"l2o {' '.join(arguments)} ended with status {status}")


PARTS: Mapping[Part, Callable[[Options, Console], Rows]] = {
    "checks": checks,
    "meta_training": meta_training,
    "training": training,
    "updates": updates,
}


def main(options: Options) -> None:
    """Measures; prints and writes each row as it comes."""
    console = wide_console()
    about = environment() | {"device": jax.devices()[0].device_kind}
    for part in options.parts:
        rows: list[dict[str, Any]] = []
        for row in PARTS[part](options, console):
            rows.append(row)
            console.print(json.dumps(row), highlight=False, soft_wrap=True)
            write(f"gpu_{part}", {"environment": about, "rows": rows})


if __name__ == "__main__":
    main(tyro.cli(Options))
