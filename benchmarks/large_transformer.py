"""A byte transformer of 10 million parameters under learned optimizers, AdamW and Muon.

`python benchmarks/large_transformer.py --learned FILE` writes `results/large_transformer.json`
after each run, so a benchmark that was stopped goes on where it was. Learned optimizers are told
the number of steps and nothing else; AdamW and Muon run at several rates, with a weight decay of
0.1. All runs of a seed have the same initial weights and batches. Losses are in nats a byte: of
training means over the last 25 steps, of validation over 512 windows at the end.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from measuring import RESULTS, environment, write

import l2o
from l2o.datasets.fetch import dataset_folder
from l2o.datasets.text import read_text
from l2o.evaluation.baselines import BASELINES
from l2o.release import checksum
from l2o.tasks.networks.transformer import ByteTransformer
from l2o.tasks.text import Windows, windows

NAME = "large_transformer"
LAST = 25


@dataclass(frozen=True)
class Options:
    """Trains a transformer of 10 million parameters with each optimizer."""

    learned: tuple[str, ...] = ()
    """Names or files of learned optimizers."""
    rates: tuple[float, ...] = (0.0003, 0.001, 0.003, 0.01, 0.03)
    """Learning rates of AdamW and Muon."""
    seeds: int = 1
    """Runs of each."""
    steps: int = 500
    """Of each run."""
    width: int = 320
    """Channels."""
    depth: int = 8
    """Blocks."""
    length: int = 64
    """Bytes of a window."""
    batch: int = 32
    """Windows of a batch."""


def optimizers(options: Options) -> dict[str, Callable[[], optax.GradientTransformation]]:
    """What is compared, by name."""
    found: dict[str, Callable[[], optax.GradientTransformation]] = {
        f"{name} ({checksum(name)[:8]})": lambda name=name: l2o.optimizer(
            name, horizon=options.steps
        )
        for name in options.learned
    }
    for name in ("adamw", "muon"):
        baseline = BASELINES[name]
        for rate in options.rates:
            config = baseline.defaults | {"learning_rate": rate, "weight_decay": 0.1}
            found[f"{name} {rate:g}"] = lambda make=baseline.make, config=config: make(
                config, options.steps
            )
    return found


def train(
    options: Options, tx: optax.GradientTransformation, seed: int, split: Mapping[str, Windows]
) -> dict[str, Any]:
    """One run."""
    model = ByteTransformer(options.length, options.width, options.depth, rngs=nnx.Rngs(seed))
    graph, params = nnx.split(model)
    extended = optax.with_extra_args_support(tx)

    def loss_of(params: Any, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        logits = nnx.merge(graph, params)(inputs)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @jax.jit
    def step(params: Any, state: Any, inputs: jax.Array, targets: jax.Array):
        loss, grads = jax.value_and_grad(loss_of)(params, inputs, targets)
        updates, state = extended.update(grads, state, params, value=loss)
        return optax.apply_updates(params, updates), state, loss

    state = jax.jit(extended.init)(params)
    rng = np.random.default_rng(seed)
    losses, started = [], time.perf_counter()
    for i in range(options.steps):
        if i == 1:
            started = time.perf_counter()
        rows = rng.integers(len(split["train"][0]), size=options.batch)
        inputs, targets = (part[rows].astype(jnp.int32) for part in split["train"])
        params, state, loss = step(params, state, inputs, targets)
        losses.append(float(loss))
    seconds = (time.perf_counter() - started) / max(options.steps - 1, 1)
    evaluate = jax.jit(loss_of)
    inputs, targets = (part[:512].astype(jnp.int32) for part in split["valid"])
    parts = [evaluate(params, inputs[i : i + 32], targets[i : i + 32]) for i in range(0, 512, 32)]
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "train": float(np.mean(losses[-LAST:])),
        "valid": float(np.mean(parts)),
        "seconds_per_step": seconds,
        "losses": [round(loss, 3) for loss in losses[:: max(options.steps // 50, 1)]],
    }


def main(options: Options) -> None:
    """Train, print and write, run by run."""
    path = RESULTS / f"{NAME}.json"
    settings = {k: v for k, v in asdict(options).items() if k not in ("learned", "rates", "seeds")}
    kept = json.loads(path.read_text()) if path.exists() else {}
    if kept and kept["settings"] != settings:
        sys.exit(f"error: {path} is of other options, {kept['settings']}. Move it away.")
    if not kept:
        kept = {"settings": settings, "environment": environment(), "runs": {}}
    text = read_text(dataset_folder("moby_dick"))
    split = {name: windows(text[name], options.length) for name in ("train", "valid")}
    for name, make in optimizers(options).items():
        for seed in range(options.seeds):
            run = f"{name}, seed {seed}"
            if run not in kept["runs"]:
                kept["runs"][run] = train(options, make(), seed, split)
                write(NAME, kept)
            found = kept["runs"][run]
            print(
                f"{run}: training {found['train']:.3f}  validation {found['valid']:.3f}  "
                f"{found['seconds_per_step']:.2f} s a step",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Options))
