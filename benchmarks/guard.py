"""What `l2o.guarded` does to runs that diverge and to runs that do not, and what it costs.

`python benchmarks/guard.py` writes `results/guard.json`. Losses are means over the last twentieth
of a run; a ratio is that of the guarded run to Adam's at 1e-3, the fallback, from the same start
and on the same batches, its median and range over seeds. The cost is that of an update and
`optax.apply_updates`, with parameters and state donated, over the same unguarded.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
import update_cost
from measuring import Program, environment, take_turns, write

import l2o
from l2o.inner_step import inner_step
from l2o.tasks.digits import digits_autoencoder, digits_conv, digits_mlp
from l2o.tasks.text import python_transformer

Make = Callable[[int], optax.GradientTransformation]


def digits(horizon: int) -> optax.GradientTransformation:
    """The released optimizer."""
    return l2o.optimizer("digits", horizon=horizon)


FALLBACK = optax.adam(1e-3)

DIVERGENT: Mapping[str, Make] = {
    "digits x 100": lambda steps: optax.chain(digits(steps), optax.scale(100.0)),
    "digits x 10": lambda steps: optax.chain(digits(steps), optax.scale(10.0)),
    "digits, told 3 million steps": lambda steps: digits(3_000_000),
    "digits, told 10 steps": lambda steps: digits(10),
}
HEALTHY: Mapping[str, Make] = {
    "digits": digits,
    "adam 1e-2": lambda steps: optax.adam(1e-2),
    "adam 3e-3": lambda steps: optax.adam(3e-3),
    "momentum": lambda steps: optax.sgd(0.05, momentum=0.9),
    "muon": lambda steps: optax.contrib.muon(2e-2),
}


@dataclass(frozen=True)
class Options:
    """Measures what a guard does and costs."""

    steps: int = 600
    """Of runs that diverge; half of it of those that do not."""
    seeds: int = 8
    """Runs of each that diverges."""
    healthy_seeds: int = 4
    """Runs of each that does not."""
    trees: tuple[str, ...] = ("mlp", "transformer")
    """Of the cost; see `update_cost.py`."""
    designs: tuple[str, ...] = ("nominal_mlp", "adafac_mlp", "mlp_lopt")
    """Of the cost."""
    rounds: int = 9
    """Turns of each program."""


def train(
    task: l2o.Task, tx: optax.GradientTransformation, steps: int, seeds: np.ndarray
) -> tuple[np.ndarray, Any]:
    """Final losses, shape (seeds,), and optimizer states."""
    extended = optax.with_extra_args_support(tx)

    def run(seed: jax.Array, data: Any) -> tuple[jax.Array, Any]:
        k_sample, k_init, k_run = jax.random.split(jax.random.key(seed), 3)
        instance = task.sample(k_sample)
        params = task.init(k_init, instance)

        def step(carry: Any, i: jax.Array) -> tuple[Any, jax.Array]:
            key, (params, state) = jax.random.fold_in(k_run, i), carry
            params, state, loss, _ = inner_step(task, extended, key, params, state, instance, data)
            return (params, state), loss

        carry = (params, extended.init(params))
        (_, state), losses = jax.lax.scan(step, carry, jnp.arange(steps))
        return jnp.mean(losses[-(steps // 20) :]), state

    losses, state = jax.jit(jax.vmap(run, (0, None)))(seeds, task.data)
    return np.asarray(losses), state


def spread(values: np.ndarray) -> dict[str, float]:
    """Median and range."""
    return {
        "median": float(np.median(values)),
        "lowest": float(values.min()),
        "highest": float(values.max()),
    }


def divergent(options: Options) -> list[dict[str, Any]]:
    """Rows of runs that diverge, on a byte transformer."""
    task, seeds = python_transformer().evaluation[0], np.arange(options.seeds)
    fallback, _ = train(task, FALLBACK, options.steps, seeds)
    rows = []
    for name, make in DIVERGENT.items():
        alone, _ = train(task, make(options.steps), options.steps, seeds)
        found, state = train(task, l2o.guarded(make(options.steps), FALLBACK), options.steps, seeds)
        row = {"task": task.name, "optimizer": name, "switches": state.switches.tolist()}
        row |= {"unguarded": spread(alone / fallback), "guarded": spread(found / fallback)}
        rows.append(row)
        print(row, flush=True)
    return rows


def healthy(options: Options) -> list[dict[str, Any]]:
    """Rows of runs that do not diverge."""
    families = (digits_mlp, digits_conv, digits_autoencoder, python_transformer)
    rows = []
    for family in families:
        for name, make in HEALTHY.items():
            task, steps = family().evaluation[1], options.steps // 2
            seeds = np.arange(options.healthy_seeds)
            _, state = train(task, l2o.guarded(make(steps)), steps, seeds)
            row = {"task": task.name, "optimizer": name, "switches": state.switches.tolist()}
            rows.append(row)
            print(rows[-1], flush=True)
    return rows


def cost(options: Options) -> list[dict[str, Any]]:
    """Rows of what an update takes over the same without a guard."""
    rows = []
    for tree in options.trees:
        shapes = update_cost.TREES[tree]()
        draw = lambda shape: 0.1 * jax.random.normal(jax.random.key(0), shape)
        params = jax.tree.map(draw, shapes, is_leaf=update_cost.is_shape)
        for name in options.designs:
            plain = update_cost.optimizer(name)
            programs = {
                "plain": program(plain, params),
                "guarded": program(l2o.guarded(plain), params),
            }
            times = take_turns(programs, options.rounds)
            row = {"tree": tree, "design": name, "milliseconds": 1e3 * times["plain"].median}
            rows.append(row | times["guarded"].over(times["plain"]))
            print(rows[-1], flush=True)
    return rows


def program(tx: optax.GradientTransformationExtraArgs, params: optax.Params) -> Program:
    """An update and its application, with parameters and state donated."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = tx.update(grads, state, params, value=jnp.float32(1.0))
        return optax.apply_updates(params, updates), state

    carry = [jax.tree.map(jnp.array, params), tx.init(params)]
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, params).compile()

    def run() -> None:
        carry[:] = jax.block_until_ready(compiled(*carry, params))

    return Program(run, work=1.0, repeats=3)


def main(options: Options) -> None:
    """Measure all."""
    machine = environment()
    rows = {"divergent": divergent(options), "healthy": healthy(options), "cost": cost(options)}
    write("guard", {"environment": machine, **rows})


if __name__ == "__main__":
    main(tyro.cli(Options))
