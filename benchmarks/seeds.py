"""Meta-training from several seeds, or at several rates, at once.

`python benchmarks/seeds.py runs/seeds --init-from A B --learning-rates 0.003 0.003 --minutes 6`

Every theta has pairs, runs and a meta-optimizer of its own. Programs are those of one theta with an
axis more: on a GPU, which waits for small kernels, several cost little more than one. Each task is
a program of its own, and XLA compiles them side by side. The estimator is NRES; the meta-optimizer
is AdamW with clipping, its rate falling linearly to zero over the minutes given. Theta i,
averaged, is `FOLDER/I.safetensors`; `FOLDER/metrics.jsonl` has a line an outer step. A run cannot
be resumed, only begun from its thetas.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import l2o
from l2o import release
from l2o.estimators.estimator import (
    Estimator,
    EstimatorState,
    average_gradients,
    average_metrics,
)
from l2o.evaluation.seen import names_and_signatures
from l2o.learned_optimizer import Theta
from l2o.learner import descend, update_ema
from l2o.objective import Summary
from l2o.registry import task_family
from l2o.rng import key_of
from l2o.task import Key, TaskFamily

Program = Callable[..., tuple[Theta, EstimatorState, dict[str, jax.Array]]]
"""A compiled estimate: `(keys, step, theta, state, data) -> (gradient, state, metrics)`."""


@dataclass(frozen=True)
class Options:
    """Meta-trains MuonMLP from several seeds at once, by NRES."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Folder for the release files and the metrics."""
    init_from: tuple[Path, ...] = ()
    """Release file that each theta starts from; untrained if none is given."""
    learning_rates: tuple[float, ...] = (0.003, 0.003)
    """Rate of the meta-optimizer, one for each theta."""
    seeds: tuple[int, ...] = (0, 1)
    """Seed of each theta."""
    task: str = "l2o.tasks.general:general"
    """Family to meta-train on, as a name or `module:function`."""
    num_pairs: int = 64
    """Antithetic pairs of runs on each task, for each theta."""
    std: float = 0.03
    """Standard deviation of the perturbations."""
    horizon: tuple[int, int] = (100, 2000)
    """Steps of the shortest and the longest run."""
    window: int = 50
    """Steps of each run in an outer step."""
    summary: Summary = "log"
    """Summary of a run's losses."""
    ema_decay: float = 0.95
    """Decay of the average of theta that is released."""
    minutes: float = 6.0
    """Minutes, compilation apart."""
    compile_threads: int = 16
    """Programs to compile side by side."""
    save_every: int = 20
    """Outer steps between release files."""


def estimators_of(
    options: Options, family: TaskFamily, lopt: l2o.LearnedOptimizer
) -> dict[str, Estimator]:
    """Build the estimator of one theta on each task."""
    objective = l2o.Objective(summary=options.summary)
    return {
        task.name: l2o.nres(
            l2o.inner_problem(
                task,
                lopt,
                horizon=options.horizon,
                window=options.window,
                objective=objective,
            ),
            num_pairs=options.num_pairs,
            std=options.std,
        )
        for task in family.train
    }


def first_thetas(options: Options, keys: jax.Array) -> tuple[l2o.LearnedOptimizer, Theta]:
    """Read or draw the thetas, with an axis over them in front, and their design."""
    if not options.init_from:
        lopt = l2o.muon_mlp()
        return lopt, jax.vmap(lopt.init)(keys)
    found = [l2o.load(path) for path in options.init_from]
    lopt = found[0][0]
    if any((other.name, other.config) != (lopt.name, lopt.config) for other, _ in found):
        sys.exit("error: `init_from` must be files of one design and its options.")
    return lopt, jax.tree.map(lambda *leaves: jnp.stack(leaves), *(theta for _, theta in found))


def prepare(
    estimators: Mapping[str, Estimator], keys: jax.Array, theta: Theta, threads: int
) -> tuple[dict[str, EstimatorState], dict[str, Program]]:
    """Begin the runs of each task and compile their estimate, over all thetas."""

    def of_task(name: str) -> tuple[EstimatorState, Program]:
        estimator = estimators[name]

        def init(key: Key, theta: Theta) -> EstimatorState:
            return estimator.init(key_of(key, name), theta)

        def estimate(keys: jax.Array, step: jax.Array, theta: Theta, state: Any, data: Any):
            def one(key: Key, theta: Theta, state: EstimatorState):
                key = key_of(jax.random.fold_in(key, step), name)
                return estimator.estimate(key, theta, state, data)

            return jax.vmap(one)(keys, theta, state)

        state = jax.jit(jax.vmap(init))(keys, theta)
        lowered = jax.jit(estimate, donate_argnames="state").lower(
            keys, jnp.int32(0), theta, state, estimator.data
        )
        return state, lowered.compile()

    with ThreadPoolExecutor(threads) as pool:
        found = dict(zip(estimators, pool.map(of_task, estimators), strict=True))
    return {n: state for n, (state, _) in found.items()}, {n: p for n, (_, p) in found.items()}


def meta_optimizer() -> optax.GradientTransformation:
    """Clipping and AdamW, whose learning rate is part of its state."""
    adamw = optax.inject_hyperparams(optax.adamw, static_args="weight_decay")
    return optax.chain(optax.clip_by_global_norm(1.0), adamw(learning_rate=0.0, weight_decay=1e-4))


def main(options: Options) -> None:
    """Meta-train for some minutes."""
    lengths = {len(options.seeds), len(options.learning_rates)}
    if len(lengths | ({len(options.init_from)} if options.init_from else set())) > 1:
        sys.exit("error: `seeds`, `learning_rates` and `init_from` must have one for each theta.")
    family, optimizer = task_family(options.task), meta_optimizer()
    keys = jax.vmap(jax.random.key)(jnp.asarray(options.seeds))
    lopt, theta = first_thetas(options, keys)
    estimators, weights = estimators_of(options, family, lopt), family.task_weights()
    rates = jnp.asarray(options.learning_rates)

    @jax.jit
    def outer_step(
        step: jax.Array, rates: jax.Array, theta: Theta, average: Theta, opt_state: Any, parts: Any
    ) -> tuple[Theta, Theta, Any, jax.Array]:
        def one(theta: Theta, average: Theta, opt_state: Any, parts: Any, rate: jax.Array):
            gradients = {name: gradient for name, (gradient, _) in parts.items()}
            metrics = {name: metrics for name, (_, metrics) in parts.items()}
            mean = average_gradients(gradients, metrics, weights)
            opt_state[1].hyperparams["learning_rate"] = rate
            theta, opt_state = descend(optimizer, mean, opt_state, theta)
            meta_loss = average_metrics(metrics, weights)["meta_loss"]
            return theta, update_ema(options.ema_decay, step, average, theta), opt_state, meta_loss

        return jax.vmap(one)(theta, average, opt_state, parts, rates)

    begun = time.perf_counter()
    states, programs = prepare(estimators, keys, theta, options.compile_threads)
    print(f"compiled in {time.perf_counter() - begun:.0f} s", flush=True)

    options.folder.mkdir(parents=True, exist_ok=True)
    opt_state, average = jax.vmap(optimizer.init)(theta), theta
    num_steps = sum(estimator.steps for estimator in estimators.values())
    begun, limit, count, seconds = time.perf_counter(), 60 * options.minutes, 0, 0.0
    with (options.folder / "metrics.jsonl").open("w") as log:
        while seconds < limit:
            step, parts = jnp.int32(count), {}
            for name, program in programs.items():
                gradient, states[name], metrics = program(
                    keys, step, theta, states[name], estimators[name].data
                )
                parts[name] = gradient, metrics
            rates_now = rates * (1.0 - seconds / limit)
            theta, average, opt_state, meta_loss = outer_step(
                step, rates_now, theta, average, opt_state, parts
            )
            losses = {"meta_loss": meta_loss} | {n: m["meta_loss"] for n, (_, m) in parts.items()}
            line = {name: np.asarray(x).round(4).tolist() for name, x in losses.items()}
            count, seconds = count + 1, time.perf_counter() - begun
            print(json.dumps({"step": count, "seconds": round(seconds, 1), **line}), file=log)
            if count % 10 == 1:
                print(f"step {count}, {seconds:.0f} s: {line['meta_loss']}", flush=True)
            if count % options.save_every == 0 or seconds >= limit:
                log.flush()
                save(options, family, lopt, average, count, count * num_steps)
    print(f"{count} outer steps, {count * num_steps * len(rates):.3g} inner steps, {seconds:.0f} s")


def save(
    options: Options,
    family: TaskFamily,
    lopt: l2o.LearnedOptimizer,
    thetas: Theta,
    count: int,
    inner_steps: int,
) -> None:
    """Write the thetas as release files, with all that they or those before them have seen."""
    seen = set(names_and_signatures(family.train))
    for path in options.init_from:
        seen |= set(release.summary(path)["trained_on"])
    for i, (rate, seed) in enumerate(zip(options.learning_rates, options.seeds, strict=True)):
        summary = {
            "task": options.task,
            "estimator": "nres",
            "num_pairs": options.num_pairs,
            "std": options.std,
            "horizon": list(options.horizon),
            "window": options.window,
            "objective": options.summary,
            "learning_rate": rate,
            "outer_steps": count,
            "inner_steps": inner_steps,
            "seed": seed,
            "trained_on": sorted(seen),
        }
        theta = jax.tree.map(lambda x, i=i: x[i], thetas)
        l2o.save(options.folder / f"{i}.safetensors", lopt, theta, summary)


if __name__ == "__main__":
    main(tyro.cli(Options))
