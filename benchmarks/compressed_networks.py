"""How accurate compressed networks are, by the search that shared out the budget.

`python benchmarks/compressed_networks.py` trains an MLP and a convolutional network on MNIST for
each seed, compresses each to 10 % of its parameters and to 3 bits a weight on average, and measures
it before and after 300 steps of fine-tuning. Searches measure networks on 1,000 validation rows, as
many of them each; test rows are measured of what a search has found, and of nothing else. A policy
is meta-trained on smaller networks of other seeds, once for each budget, and applied without
search. Then channels and units are removed, and timed, and MiniLM, fine-tuned on passages of
speeches, is pruned to half of its parameters.

Each figure is kept as a line of `cells.jsonl` in the cache folder when it is there, so a run that
was stopped goes on where it was. `l2o data fetch mnist union_speeches` first; what MiniLM needs is
in `tasks/minilm.py`.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from measuring import environment, wide_console, write
from rich.table import Table

import l2o
from l2o.compression.fine_tuning import fine_tune
from l2o.compression.policy import CompressionPolicy
from l2o.compression.problem import CompressionProblem, compression_problem
from l2o.compression.pruning import prune_weights
from l2o.compression.quantization import quantize_weights
from l2o.compression.searches.table import SEARCHES
from l2o.evaluation.statistics import mean_interval
from l2o.runs.compilation import use_compilation_cache
from l2o.supervision.supervised import take
from l2o.tasks.images import side_of
from l2o.tasks.mnist import images
from l2o.tasks.networks.conv import Conv, as_images
from l2o.tasks.networks.mlp import MLP

Part = Literal["table", "units", "minilm"]

BUDGETS: Mapping[str, Callable[[l2o.TrainedModel], Any]] = {
    "10 % of the parameters": lambda model: prune_weights(model, keep=0.1),
    "3 bits": lambda model: quantize_weights(model, bits=3),
}

VALID_ROWS, TRAIN_STEPS, TRAIN_BATCH = 1000, 1500, 64

FINE_TUNE_STEPS, FINE_TUNER = 300, optax.adam(1e-3)
"""Fine-tuning of every compressed network, after its accuracy without was measured."""

POLICY = "meta-trained policy"

FIRST_POLICY_SEED = 1000
"""Seeds of the networks that policies are meta-trained on begin here."""


@dataclass(frozen=True)
class Options:
    """Compresses networks."""

    parts: tuple[Part, ...] = ("table", "units", "minilm")
    """What to measure."""
    seeds: int = 10
    """Trained networks of each architecture."""
    evaluations: int = 200
    """Networks that a search may measure."""
    policy_networks: int = 6
    """Networks of each small architecture that policies are meta-trained on."""
    policy_steps: int = 150
    """Outer steps of the meta-training of a policy."""
    minilm_evaluations: int = 60
    """Networks that a search may measure of MiniLM."""
    minilm_steps: int = 200
    """Steps of MiniLM's fine-tuning, before and after pruning."""
    cache: str = "runs/compression"
    """Folder for what is finished."""


class SmallConv(nnx.Module):
    """Two convolutions, the second of stride 2, and two dense layers."""

    def __init__(self, side: int, channels: tuple[int, int], width: int, *, rngs: nnx.Rngs):
        self.first = Conv((1, channels[0]), rngs=rngs)
        self.second = Conv(channels, stride=2, rngs=rngs)
        half = -(-side // 2)
        self.dense = nnx.Linear(half * half * channels[1], width, rngs=rngs)
        self.last = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Map flat images to logits."""
        x = nnx.relu(self.second(nnx.relu(self.first(as_images(pixels)))))
        return self.last(nnx.relu(self.dense(x.reshape(len(x), -1))))


@dataclass(frozen=True)
class Architecture:
    """A network, and the side of the images that it sees."""

    name: str
    side: int
    make: Callable[[nnx.Rngs], nnx.Module]


MEASURED = (
    Architecture("MLP", 28, lambda rngs: MLP((784, 64, 64, 10), rngs=rngs)),
    Architecture("conv net", 14, lambda rngs: SmallConv(14, (8, 16), 32, rngs=rngs)),
)

SMALL = (
    Architecture("small MLP", 14, lambda rngs: MLP((196, 32, 32, 10), rngs=rngs)),
    Architecture("deeper MLP", 14, lambda rngs: MLP((196, 48, 32, 24, 10), rngs=rngs)),
    Architecture("small conv net", 14, lambda rngs: SmallConv(14, (4, 8), 16, rngs=rngs)),
)
"""What policies are meta-trained on."""

WIDE = (
    Architecture("MLP, 512 wide", 28, lambda rngs: MLP((784, 512, 512, 10), rngs=rngs)),
    Architecture("conv net, 32x64", 14, lambda rngs: SmallConv(14, (32, 64), 128, rngs=rngs)),
)
"""Of which units are removed."""


class Cells:
    """Finished figures by their names, kept as lines of a file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "cells.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.found = {}
        for line in lines:
            try:
                cell = json.loads(line)
            except ValueError:  # the last, of a run that was killed
                continue
            self.found[json.dumps(cell["name"])] = cell["result"]

    def get(self, name: Any, measure: Callable[[], Any]) -> Any:
        """What is kept under a name, or what measuring gives, which is kept."""
        key = json.dumps(name)
        if key not in self.found:
            self.found[key] = measure()
            with self.path.open("a") as file:  # after the part of a line that a kill has left
                file.write("\n" + json.dumps({"name": name, "result": self.found[key]}) + "\n")
        return self.found[key]


@functools.cache
def rows_of_side(side: int) -> Mapping[l2o.Split, tuple[Any, Any]]:
    """MNIST, with fewer validation rows."""
    data = images("mnist", side)
    assert side_of(data, 1) == side
    valid = data["valid"]
    return {
        "train": (data["train"].pixels, data["train"].labels),
        "valid": (valid.pixels[:VALID_ROWS], valid.labels[:VALID_ROWS]),
        "test": (data["test"].pixels, data["test"].labels),
    }


@functools.cache
def trainer(architecture: Architecture) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Compiled training of an architecture from a seed, and its `apply`."""
    graph, shapes = nnx.split(nnx.eval_shape(lambda: architecture.make(nnx.Rngs(0))), nnx.Param)
    structure = jax.tree.structure(shapes)
    tx = optax.adam(optax.cosine_decay_schedule(3e-3, TRAIN_STEPS))

    def apply(params: Any, pixels: jax.Array) -> jax.Array:
        return nnx.merge(graph, jax.tree.unflatten(structure, jax.tree.leaves(params)))(pixels)

    @jax.jit
    def train(params: Any, keys: jax.Array, rows: tuple[jax.Array, jax.Array]) -> Any:
        def loss(params: Any, indices: jax.Array) -> jax.Array:
            logits, labels = apply(params, rows[0][indices]), rows[1][indices]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
            params, state = carry
            indices = jax.random.randint(key, (TRAIN_BATCH,), 0, len(rows[1]))
            updates, state = tx.update(jax.grad(loss)(params, indices), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    return train, apply


@functools.lru_cache(maxsize=64)
def trained(architecture: Architecture, seed: int) -> l2o.TrainedModel:
    """A network that is trained from a seed."""
    train, apply = trainer(architecture)
    rows = rows_of_side(architecture.side)
    params = nnx.to_pure_dict(nnx.state(architecture.make(nnx.Rngs(seed)), nnx.Param))
    keys = jax.random.split(jax.random.key(seed), TRAIN_STEPS)
    return l2o.trained_model(architecture.name, train(params, keys, rows["train"]), apply, rows)


@functools.cache
def problem_of(architecture: Architecture, budget: str) -> CompressionProblem:
    """The problem of an architecture, which all its networks share what is compiled of."""
    model = trained(architecture, 0)
    return compression_problem(model, BUDGETS[budget](model))


def policy_for(budget: str, options: Options) -> CompressionPolicy:
    """A policy that is meta-trained for a budget on small networks, or the kept one."""
    place = f"policy_{list(BUDGETS).index(budget)}_{options.policy_networks}_{options.policy_steps}"
    path = Path(options.cache) / f"{place}.safetensors"
    if not path.exists():
        seeds = range(FIRST_POLICY_SEED, FIRST_POLICY_SEED + options.policy_networks)
        problems = [
            [problem_of(architecture, budget).of(trained(architecture, seed)) for seed in seeds]
            for architecture in SMALL
        ]
        policy = l2o.train_compression_policy(problems, steps=options.policy_steps)
        policy.save(path)
    return l2o.load_compression_policy(path)


def cell(architecture: Architecture, budget: str, method: str, seed: int, options: Options) -> Any:
    """What one search finds on one network."""
    model = trained(architecture, seed)
    problem = problem_of(architecture, budget).of(model)
    if method == POLICY:
        policy = policy_for(budget, options)
        begun = time.perf_counter()
        found = policy.allocate(problem)
    else:
        begun = time.perf_counter()
        found = SEARCHES[method](problem, options.evaluations, seed)
    seconds = time.perf_counter() - begun
    accuracy = lambda params: float(measure_accuracy(architecture)(params, model.data["test"]))
    tuned = fine_tune(problem, found.counts, FINE_TUNER, steps=FINE_TUNE_STEPS, seed=seed)
    return {
        "valid": found.score,
        "test": accuracy(problem.compressed(found.counts)),
        "fine_tuned": accuracy(problem.compressed(found.counts, tuned)),
        "counts": [int(count) for count in found.counts],
        "evaluations": found.evaluations,
        "seconds": round(seconds, 3),
    }


@functools.cache
def measure_accuracy(architecture: Architecture) -> Callable[..., jax.Array]:
    """Compiled accuracy of an architecture on rows."""
    return jax.jit(lambda params, rows: trained(architecture, 0).measure(params, rows)["accuracy"])


def measure_table(cells: Cells, options: Options, console: Any) -> list[dict[str, Any]]:
    """Every search on every network, and means with their intervals."""
    rows = []
    for architecture, budget in itertools.product(MEASURED, BUDGETS):
        for method in ("whole network", *SEARCHES, POLICY):
            found = []
            for seed in range(options.seeds):
                if method == "whole network":
                    name = [architecture.name, method, seed]
                    measure = functools.partial(whole_cell, architecture, seed)
                else:
                    spent = [options.evaluations]
                    if method == POLICY:
                        spent = [options.policy_networks, options.policy_steps]
                    name = [architecture.name, budget, method, *spent, seed]
                    measure = functools.partial(cell, architecture, budget, method, seed, options)
                found.append(cells.get(name, measure))
            tests = {key: percent([each[key] for each in found]) for key in ("test", "fine_tuned")}
            rows.append(
                {
                    "network": architecture.name,
                    "budget": budget,
                    "method": method,
                    "evaluations": max(each["evaluations"] for each in found),
                    "test_accuracy": tests["test"],
                    "test_accuracy_after_fine_tuning": tests["fine_tuned"],
                    "seconds": float(np.median([each["seconds"] for each in found])),
                }
            )
            console.print(rows[-1], highlight=False)
    return rows


def percent(accuracies: list[float]) -> dict[str, float]:
    """Mean of accuracies in percent, with its interval."""
    found = mean_interval(100.0 * np.array(accuracies))
    return {"mean": found.value, "low": found.low, "high": found.high}


def whole_cell(architecture: Architecture, seed: int) -> dict[str, Any]:
    """The network as it was trained."""
    model = trained(architecture, seed)
    accuracy = float(measure_accuracy(architecture)(model.params, model.data["test"]))
    return {"test": accuracy, "fine_tuned": accuracy, "evaluations": 0, "seconds": 0.0}


def measure_units(cells: Cells, console: Any) -> list[dict[str, Any]]:
    """Wide networks without most of their units: accuracy, size and time."""
    rows = []
    for architecture, flops in itertools.product(WIDE, (0.5, 0.25, 0.1)):

        def measure(architecture: Architecture = architecture, flops: float = flops) -> Any:
            model = trained(architecture, 0)
            result = l2o.compress(
                model, flops=flops, units=True, search="tpe", evaluations=60, fine_tune=300
            )
            assert result.seconds is not None and result.after_fine_tuning is not None
            tests = [result.before, result.after, result.after_fine_tuning]
            return {
                "network": architecture.name,
                "flops": flops,
                "units": dict(result.counts),
                "parameters": [model.size, sum(x.size for x in jax.tree.leaves(result.params))],
                "test_accuracy": [each["test"]["accuracy"] for each in tests],
                "milliseconds_for_256_rows": [1e3 * second for second in result.seconds],
                "speed_up": result.seconds[0] / result.seconds[1],
            }

        rows.append(cells.get(["units", architecture.name, flops], measure))
        console.print(rows[-1], highlight=False)
    return rows


def minilm_model(steps: int, cache: Path) -> l2o.TrainedModel:
    """MiniLM with a head, all of it fine-tuned on passages of speeches by AdamW."""
    from safetensors.numpy import load_file, save_file

    from l2o.compression.layers import leaves_by_name
    from l2o.datasets.fetch import dataset_folder
    from l2o.tasks import minilm as task
    from l2o.tasks.networks.bert import bert

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        pooled = jnp.mean(bert(params["bert"], tokens, heads=task.HEADS), axis=1)
        return pooled @ params["head"]["kernel"] + params["head"]["bias"]

    weights = task.minilm()
    width = weights["embeddings"]["word"].shape[1]
    kernel = 0.02 * jax.random.normal(jax.random.key(0), (width, task.ERAS))
    params = {"bert": weights, "head": {"kernel": kernel, "bias": jnp.zeros(task.ERAS)}}
    data = task._passages(dataset_folder("union_speeches"))
    path = cache / f"minilm_{steps}.safetensors"
    if not path.exists():
        rows = jax.tree.map(jnp.asarray, data["train"])
        tx = optax.adamw(1e-4, weight_decay=0.0)

        @jax.jit
        def step(params: Any, state: Any, key: jax.Array, rows: Any) -> tuple[Any, Any]:
            indices = jax.random.randint(key, (task.BATCH_SIZE,), 0, len(rows[1]))
            batch = take(rows, indices)

            def loss(params: Any) -> jax.Array:
                logits = apply(params, batch[0])
                return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        state = tx.init(params)
        for key in jax.random.split(jax.random.key(1), steps):
            params, state = step(params, state, key, rows)
        save_file({n: np.asarray(x) for n, x in leaves_by_name(params).items()}, path)
    kept = load_file(path)
    leaves = [jnp.asarray(kept[name]) for name in leaves_by_name(params)]
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return l2o.trained_model("MiniLM", params, apply, data)


def measure_minilm(cells: Cells, options: Options, console: Any) -> list[dict[str, Any]]:
    """MiniLM at half of its parameters: before, after, after fine-tuning."""
    rows = []
    load = functools.cache(lambda: minilm_model(options.minilm_steps, Path(options.cache)))
    for search in SEARCHES:

        def measure(search: str = search) -> Any:
            begun = time.perf_counter()
            result = l2o.compress(
                load(),
                keep=0.5,
                search=search,
                evaluations=options.minilm_evaluations,
                fine_tune=options.minilm_steps,
                optimizer=optax.adam(1e-4),
                batch_size=8,
            )
            assert result.after_fine_tuning is not None
            tests = [result.before, result.after, result.after_fine_tuning]
            return {
                "search": search,
                "evaluations": result.found.evaluations,
                "parameters": [result.whole, result.cost],
                "test_accuracy": [each["test"]["accuracy"] for each in tests],
                "test_loss": [each["test"]["loss"] for each in tests],
                "seconds": time.perf_counter() - begun,
            }

        name = ["minilm", search, options.minilm_evaluations, options.minilm_steps]
        rows.append(cells.get(name, measure))
        console.print(rows[-1], highlight=False)
    return rows


def show(rows: list[dict[str, Any]]) -> Table:
    """Test accuracies in percent, with 95 % intervals of their means."""
    table = Table("network", "budget", "method", "measured", "test accuracy, %", "fine-tuned", "s")
    shown = lambda test: f"{test['mean']:.2f} ({test['low']:.2f} to {test['high']:.2f})"
    for row in rows:
        table.add_row(
            row["network"],
            row["budget"],
            row["method"],
            str(row["evaluations"]),
            shown(row["test_accuracy"]),
            shown(row["test_accuracy_after_fine_tuning"]),
            f"{row['seconds']:.1f}",
        )
    return table


def main(options: Options) -> None:
    """Measures the parts that are asked for, and writes a file with what there is."""
    use_compilation_cache()
    console = wide_console()
    cells = Cells(Path(options.cache))
    result: dict[str, Any] = {
        "seeds": options.seeds,
        "evaluations": options.evaluations,
        **environment(),
    }
    if "table" in options.parts:
        result["table"] = measure_table(cells, options, console)
        console.print(show(result["table"]))
    if "units" in options.parts:
        result["units"] = measure_units(cells, console)
    if "minilm" in options.parts:
        result["minilm"] = measure_minilm(cells, options, console)
    console.print(write("compressed_networks", result))


if __name__ == "__main__":
    main(tyro.cli(Options))
