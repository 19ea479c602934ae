"""How far AdamW fine-tunes MiniLM on passages of speeches: all of it, by LoRA, or its last layers.

`python benchmarks/fine_tuning.py` trains one seed of each task for 200 steps at each rate of AdamW,
constant, without weight decay, and chooses the rate by the loss on all validation rows at the end.
It writes loss and accuracy on all test rows before and after, and the seconds of the steps, without
compilation. A run that was stopped goes on where it was. `l2o data fetch union_speeches` first;
`tasks/minilm.py` says what to install.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
import tyro
from measuring import RESULTS, environment, wide_console, write

from l2o import registry
from l2o.rng import stream
from l2o.task import Data, Key, Split, Task

RATES: Mapping[str, tuple[float, ...]] = {
    "minilm_whole": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3),
    "minilm_lora_r4": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    "minilm_frozen_last1": (3e-4, 1e-3, 3e-3, 1e-2),
    "minilm_frozen_head": (3e-3, 1e-2, 3e-2, 1e-1),
}
"""Learning rates that are tried on each task."""


STEPS = 200

SEED = 0


@dataclass(frozen=True)
class Options:
    """Fine-tunes MiniLM."""

    tasks: tuple[str, ...] = tuple(RATES)
    """Names of tasks."""
    again: bool = False
    """Whether to measure anew what the file holds."""


def fine_tune(task: Task, rates: tuple[float, ...], before: Mapping[str, Any]) -> dict[str, Any]:
    """What each rate of AdamW reaches on a task; what was measured before stays."""
    k_instance, k_init, k_batches = jax.random.split(stream(SEED, "evaluation"), 3)
    instance = task.sample(k_instance)
    first = jax.jit(task.init)(k_init, instance)
    keys = jax.random.split(k_batches, STEPS)

    @jax.jit
    def train(params: optax.Params, rate: jax.Array, keys: Key, data: Data) -> optax.Params:
        tx = optax.adamw(rate, weight_decay=0.0)

        def step(carry: tuple[optax.Params, Any], key: Key):
            params, state = carry
            batch = task.batch(key, instance, data, "train")
            grads = jax.grad(task.loss)(params, batch, instance)
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    @jax.jit
    def measure(params: optax.Params, data: Data) -> dict[str, dict[str, jax.Array]]:
        def on(split: Split) -> dict[str, jax.Array]:
            assert task.all_rows is not None
            rows = task.all_rows(instance, data, split)
            loss = task.loss(params, rows, instance)
            return {"loss": loss, "accuracy": task.metrics(params, rows, instance)["accuracy"]}

        return {"valid": on("valid"), "test": on("test")}

    measured = lambda params: jax.tree.map(float, measure(params, task.data))
    runs = {run["learning_rate"]: run for run in before.get("runs", [])}
    compiled = train.lower(first, np.float32(0.0), keys, task.data).compile()
    for rate in [rate for rate in rates if rate not in runs]:
        began = time.perf_counter()
        params = jax.block_until_ready(compiled(first, np.float32(rate), keys, task.data))
        seconds = time.perf_counter() - began
        runs[rate] = {"learning_rate": rate, "seconds": seconds, **measured(params)}
    ordered = [runs[rate] for rate in sorted(runs)]
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(first)),
        "before": measured(first)["test"],
        "chosen": ordered[int(np.nanargmin([run["valid"]["loss"] for run in ordered]))],
        "runs": ordered,
    }


def main(options: Options) -> None:
    """Writes a file with all tasks, after each of them."""
    console = wide_console()
    path = RESULTS / "fine_tuning.json"
    kept = json.loads(path.read_text()) if path.is_file() and not options.again else {}
    result: dict[str, Any] = {**kept, "steps": STEPS, "seed": SEED, **environment()}
    for name in options.tasks:
        (task,) = registry.tasks_to_evaluate([name])
        result[name] = fine_tune(task, RATES[name], kept.get(name, {}))
        console.print(name, result[name], highlight=False)
        write("fine_tuning", result)


if __name__ == "__main__":
    main(tyro.cli(Options))
