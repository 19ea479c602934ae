"""The same on a GPU: updates, meta-training, and the step of a small ViT and a small GPT.

`python benchmarks/gpu.py` runs `update_cost.py` and `throughput.py` (PES alone) where JAX has a
GPU, then times a training step of two networks in Flax with every design beside `optax.adamw`. All
goes to `gpu.json`, with the device's name and the time that the bytes of an update alone would take
at `--bandwidth`. `--small` shrinks the networks, to try the script on a CPU.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import optax
import throughput
import tyro
import update_cost
from flax import nnx
from measuring import Program, environment, take_turns, wide_console, write
from rich.console import Console
from rich.table import Table

YARDSTICK = "adamw"


@dataclass(frozen=True)
class Options:
    """Times updates, meta-training and training steps on the first device."""

    designs: tuple[str, ...] = update_cost.Options().designs
    """Names from `l2o list`."""
    bandwidth: float | None = None
    """Gigabytes a second that the device can move, for the roofline; none if not given."""
    small: bool = False
    """Networks that a CPU can train."""
    rounds: int = 9
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


def training_rows(options: Options, console: Console) -> list[dict[str, Any]]:
    """Milliseconds of a training step, and over AdamW's."""
    shape = Shape().small if options.small else Shape()
    rows = []
    for network in NETWORKS:
        programs = {}
        for name in (YARDSTICK, *options.designs):
            console.print(f"{network}: compiling {name}", highlight=False)
            programs[name] = training_program(name, network, shape)
        times = take_turns(programs, options.rounds)
        for name, found in times.items():
            row = {"network": network, "design": name, "milliseconds": 1e3 * found.median}
            rows.append(row | found.over(times[YARDSTICK]))
    return rows


def roofline(row: Mapping[str, Any], bandwidth: float) -> float:
    """Nanoseconds a parameter that moving an update's bytes takes at least.

    Gradient, parameter and state are read, parameter and state written.
    """
    return (4.0 + 2.0 * 4.0 + 2.0 * row["state_bytes_per_parameter"]) / bandwidth


def main(options: Options) -> None:
    """Measures, prints a table and writes JSON."""
    console = wide_console()
    about = environment() | {"device": jax.devices()[0].device_kind}
    trees = ("mlp",) if options.small else update_cost.Options().trees
    updates = update_cost.Options(designs=options.designs, trees=trees, memory=60.0)
    of_updates = [row for tree in trees for row in update_cost.measure(tree, updates, console)]
    if options.bandwidth:
        of_updates = [row | {"roofline_ns": roofline(row, options.bandwidth)} for row in of_updates]
    settings = throughput.Options(
        tasks=("quadratic",) if options.small else ("digits", "quadratic"),
        estimators=("pes",),
        designs=throughput.Options().designs[:1] if options.small else throughput.Options().designs,
        devices=1,
    )
    of_meta_training = [
        row for name in settings.tasks for row in throughput.measure(name, settings, console)
    ]
    of_training = training_rows(options, console)
    path = write(
        "gpu",
        {
            "environment": about,
            "updates": of_updates,
            "meta_training": of_meta_training,
            "training": of_training,
        },
    )
    console.print(update_cost.table(of_updates), throughput.table(of_meta_training))
    shown = Table(title="A training step")
    for column in ("network", "design", "ms", "over adamw's"):
        shown.add_column(column, no_wrap=True)
    for row in of_training:
        cells = (f"{row['milliseconds']:.2f}", f"{row['ratio']:.2f}")
        shown.add_row(row["network"], row["design"], *cells)
    console.print(shown)
    console.print(str(path), highlight=False)


if __name__ == "__main__":
    main(tyro.cli(Options))
