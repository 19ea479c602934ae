"""Optimizers meta-trained for robustness, and learned attackers beside PGD; two tables.

`python benchmarks/adversaries.py` meta-trains what is not there, continues what was stopped, and
writes both tables; a cell that the file holds is not measured again.
    defence  An MLP on digits is trained by optimizers that were meta-trained for the loss under
             attack and for the plain one, on validation batches, from one start with one budget,
             and by Adam and Muon, tuned for robust accuracy on validation rows. All train alike:
             once on attacked batches and once on plain ones. Robust accuracy is that of PGD-40 with
             5 restarts on test rows.
    attack   Attackers that were meta-trained on some networks and validation rows attack other
             networks on test rows. PGD, with its step size and restarts tuned, and Adam, with its
             rate tuned, on the networks and rows of meta-training, have as many evaluations of the
             gradient. Random search, with 50 times as many evaluations of the loss, is a control.
"""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
import optax
import tyro
from measuring import RESULTS, environment, wide_console, write
from rich.console import Console
from rich.table import Table

import l2o
from l2o.adversarial.ball import Ball
from l2o.adversarial.inputs import input_gradient, row_scores
from l2o.adversarial.pgd import strongest
from l2o.adversarial.random_search import random_search
from l2o.cli.meta_train import meta_trained
from l2o.cli.methods.estimators import NRES
from l2o.cli.methods.method import LOG_LOSS, MetaOptimizer
from l2o.cli.presets import PRESETS
from l2o.cli.settings import Evaluation, MetaTraining, Output
from l2o.distributed import processes
from l2o.evaluation.baseline import Baseline
from l2o.evaluation.baselines import BASELINES
from l2o.evaluation.starts import Start, draw_starts
from l2o.evaluation.statistics import mean_interval
from l2o.evaluation.training import Curves, Settings, Trainer
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.objective import Objective
from l2o.task import Data, Task
from l2o.tasks.adversarial import RADIUS, digits_attack
from l2o.tasks.digits import digits_mlp

FAMILIES = "l2o.tasks.adversarial:"

HORIZON = 400
"""Training steps of a network of the first table."""

TUNING_SEEDS, TRIALS = 8, 16
"""Runs at each setting of Adam, and random settings after its rates."""

BUDGETS = (10, 40)
"""Evaluations of the gradient of an attack of the second table."""

STEP_SIZES = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
"""Step sizes of PGD that are tried, in radii."""

RESTARTS = {10: (1, 2, 5), 40: (1, 2, 4, 8)}
"""Starts of PGD that are tried, which share the evaluations."""

CONTROL = 50
"""Evaluations of the loss that the control has for each of the gradient."""


@dataclass(frozen=True)
class Options:
    """Measures defences and attacks."""

    tables: Annotated[tuple[Literal["defence", "attack"], ...], tyro.conf.Positional] = (
        "defence",
        "attack",
    )
    """Which of the two."""
    seeds: int = 16
    """Networks that each optimizer trains."""
    attacks: int = 128
    """Batches of rows that are attacked, each on one of the networks."""
    defence_steps: float = 4e5
    """Inner steps of each meta-training of the first table, about."""
    attack_steps: float = 4e6
    """Inner steps of each meta-training of the second, about."""
    seed: int = 0
    """Seed of everything random."""
    runs: Path = Path("runs/adversaries")
    """Where the runs of meta-training are, or will be."""
    name: str = "adversaries"
    """Name of the file of results."""


SETTINGS = replace(PRESETS["demo"], evaluate=False, eval=Evaluation(), output=Output(quiet=True))

FOR_DEFENCE = replace(
    SETTINGS,
    horizon=(100, HORIZON),
    method=replace(SETTINGS.method, objective=replace(LOG_LOSS, measure_on="valid")),
)
"""The recipe of the preset "demo", but for what is measured: losses of validation batches."""

DEFENDERS: Mapping[str, MetaTraining] = {
    "for the loss": replace(FOR_DEFENCE, task=("digits_mlp",)),
    "attacked": replace(FOR_DEFENCE, task=(f"{FAMILIES}digits_robust",)),
    "plain": replace(FOR_DEFENCE, task=(f"{FAMILIES}digits_plain_robust",)),
}
"""One for the loss, and for robustness one for each way to train."""

FOR_ATTACK = MetaTraining(
    task=(f"{FAMILIES}digits_attack",),
    horizon=(BUDGETS[0], BUDGETS[-1]),
    window=5,
    evaluate=False,
    output=Output(quiet=True),
    method=NRES(
        num_pairs=8,
        std=0.05,
        final_std=0.02,
        objective=Objective("final_log"),
        meta_optimizer=MetaOptimizer(learning_rate=5e-3),
    ),
)

ATTACKERS: Mapping[str, MetaTraining] = {
    name: replace(FOR_ATTACK, optimizer=(name,))
    for name in ("learnable_adam", "adafac_mlp", "nominal_mlp")
}


class Cells:
    """Results by name, in a file that is written after each; what it holds stays."""

    def __init__(self, options: Options):
        self.name = options.name
        path = RESULTS / f"{options.name}.json"
        kept: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        config = {k: str(v) for k, v in vars(options).items() if k != "tables"}
        if kept and kept["config"] != config:
            raise SystemExit(f"{path} is of other options; try --name, or delete it")
        self.result = kept or {"config": config, **environment(), "cells": {}}

    def get(self, name: str, measure: Callable[[], Any]) -> Any:
        """What a cell holds, measured if it is not there."""
        if name not in self.result["cells"]:
            self.result["cells"][name] = measure()
            write(self.name, self.result)
        return self.result["cells"][name]


def learned(
    settings: MetaTraining, name: str, inner_steps: float, options: Options
) -> tuple[LearnedOptimizer, Theta]:
    """The design and theta of a run, which is meta-trained if it is not there."""
    output = replace(settings.output, run_dir=str(options.runs / name.replace(" ", "_")))
    settings = replace(settings, seed=options.seed, output=output)
    lopt, theta, _ = meta_trained(settings, inner_steps, Console())
    return lopt, theta


def train(
    task: Task, make: Callable[..., Any], settings: Settings, starts: Start, *, horizon: int
) -> list[Curves]:
    """Train at some settings; probes of the training loss are not needed on the way."""
    return Trainer(task, make, horizon=horizon, probe_every=horizon).train(settings, starts)


def train_learned(
    task: Task, found: tuple[LearnedOptimizer, Theta], starts: Start, *, horizon: int
) -> Curves:
    """Train by a learned optimizer."""
    lopt, theta = found
    one = jax.tree.map(lambda x: np.asarray(x)[None], theta)
    make = lambda theta: lopt.transform(theta, horizon=horizon)
    return train(task, make, one, starts, horizon=horizon)[0]


def train_baseline(
    task: Task,
    baseline: Baseline,
    configs: Sequence[Mapping[str, float]],
    starts: Start,
    *,
    horizon: int,
) -> list[Curves]:
    """Train by a baseline at some configs."""
    whole = [{**baseline.defaults, **config} for config in configs]
    settings = {name: np.array([config[name] for config in whole]) for name in whole[0]}
    make = lambda config: baseline.make(config, horizon)
    return train(task, make, settings, starts, horizon=horizon)


def part_of(starts: Start, part: slice) -> Start:
    """Some of the starts."""
    return jax.tree.map(lambda x: x[part], starts)


def defence(options: Options, cells: Cells) -> Table:
    """Robust accuracy of networks, by how they were trained and by what."""
    plain = digits_mlp().evaluation[1]
    table = Table(title="Accuracy of networks on test rows, and under PGD-40 with 5 restarts")
    for column in ("training batches", "optimizer", "robust accuracy", "accuracy"):
        table.add_column(column)
    for way in ("attacked", "plain"):
        robust = functools.partial(
            l2o.robust, plain, radius=RADIUS, steps=5, adversarial_training=way == "attacked"
        )
        task, quick = robust(eval_steps=40, restarts=5), robust(eval_steps=10, restarts=1)
        key = l2o.stream(options.seed, "evaluation")
        starts = draw_starts(key, task, TUNING_SEEDS + options.seeds)
        tuning, reported = (
            part_of(starts, slice(TUNING_SEEDS)),
            part_of(starts, slice(TUNING_SEEDS, None)),
        )

        def of_learned(name: str, task=task, reported=reported) -> dict[str, Any]:
            found = learned(DEFENDERS[name], name, options.defence_steps, options)
            return ends(train_learned(task, found, reported, horizon=HORIZON))

        def of_baseline(name: str, task=task, quick=quick, tuning=tuning, reported=reported):
            config, tried = tuned_for_robustness(quick, BASELINES[name], tuning, options)
            (curves,) = train_baseline(task, BASELINES[name], [config], reported, horizon=HORIZON)
            return {**ends(curves), "config": config, "tried": tried}

        for label, measure, name in (
            ("meta-trained for robustness", of_learned, way),
            ("meta-trained for the loss", of_learned, "for the loss"),
            ("Adam, tuned", of_baseline, "adam"),
            ("Adam with a cosine, tuned", of_baseline, "adam_cosine"),
            ("Muon, tuned", of_baseline, "muon"),
        ):
            cell = cells.get(f"defence/{way}/{label}", functools.partial(measure, name))
            table.add_row(way, label, shown(cell["robust_accuracy"]), shown(cell["accuracy"]))
    return table


def ends(curves: Curves) -> dict[str, Any]:
    """What is kept of a run: metrics on test rows, by seed."""
    return {name: np.asarray(values).tolist() for name, values in curves.test.items()}


def tuned_for_robustness(
    task: Task, baseline: Baseline, starts: Start, options: Options
) -> tuple[dict[str, float], int]:
    """The config with the highest median robust accuracy on validation rows, and how many tried."""
    tried: list[tuple[float, dict[str, float]]] = []

    def attempt(configs: Sequence[Mapping[str, float]]) -> None:
        found = train_baseline(task, baseline, configs, starts, horizon=HORIZON)
        scores = [float(np.median(curves.valid["robust_accuracy"])) for curves in found]
        tried.extend((s, dict(c)) for s, c in zip(scores, configs, strict=True))

    best = lambda: max(tried, key=lambda pair: pair[0])[1]
    attempt([{"learning_rate": rate} for rate in baseline.learning_rates])
    rng, rate = np.random.default_rng(options.seed), best()["learning_rate"]
    attempt([{"learning_rate": rate * 10.0**shift} for shift in (-1 / 3, -1 / 6, 1 / 6, 1 / 3)])
    rate = best()["learning_rate"]
    attempt(
        [
            {"learning_rate": rate * 10.0 ** (rng.random() - 0.5)}
            | {name: values.at(rng.random()) for name, values in baseline.space.items()}
            for _ in range(TRIALS)
        ]
    )
    return best(), len(tried)


def attack(options: Options, cells: Cells) -> Table:
    """Share of rows that attackers fool, by evaluations of the gradient."""
    family = digits_attack()
    table = Table(title="Share of rows fooled on networks and rows not seen before")
    for column in ("networks", "gradients", "attacker", "fooled", "minus PGD"):
        table.add_column(column)
    key = l2o.stream(options.seed, "evaluation")
    for kind, seen, unseen in zip(
        ("plain", "robust"), family.train, family.evaluation, strict=True
    ):
        tuning = draw_starts(key, seen, options.attacks)
        reported = draw_starts(key, unseen, options.attacks)
        for budget in BUDGETS:
            cell = lambda name, measure, at=f"attack/{kind}/{budget}": cells.get(
                f"{at}/{name}", measure
            )

            def of_pgd(budget=budget, seen=seen, unseen=unseen, tuning=tuning, reported=reported):
                pairs = [(size, n) for size in STEP_SIZES for n in RESTARTS[budget]]
                on_seen = [by_pgd(seen, tuning, budget, *pair) for pair in pairs]
                best = pairs[int(np.argmax(np.mean(on_seen, axis=1)))]
                return {
                    "step_size_in_radii": best[0],
                    "restarts": best[1],
                    "success": by_pgd(unseen, reported, budget, *best).tolist(),
                }

            def of_adam(budget=budget, seen=seen, unseen=unseen, tuning=tuning, reported=reported):
                rates = np.array([RADIUS * size for size in STEP_SIZES])
                go = functools.partial(train, horizon=budget)
                on_seen = go(seen, optax.adam, rates, tuning)
                best = int(np.argmax([np.mean(c.test["success"]) for c in on_seen]))
                (curves,) = go(unseen, optax.adam, rates[best : best + 1], reported)
                return {"learning_rate": float(rates[best]), **ends(curves)}

            def of_learned(name, budget=budget, unseen=unseen, reported=reported):
                found = learned(ATTACKERS[name], name, options.attack_steps, options)
                return ends(train_learned(unseen, found, reported, horizon=budget))

            def of_control(budget=budget, unseen=unseen, reported=reported):
                return {"success": by_search(unseen, reported, CONTROL * budget).tolist()}

            pgd = cell("pgd", of_pgd)
            rows = {"PGD, tuned": pgd, "Adam, tuned": cell("adam", of_adam)}
            for name in ATTACKERS:
                rows[f"{name}, learned"] = cell(name, functools.partial(of_learned, name))
            rows[f"random search, {CONTROL * budget} losses"] = cell("control", of_control)
            for label, found in rows.items():
                gain = np.subtract(found["success"], pgd["success"])
                table.add_row(kind, str(budget), label, shown(found["success"]), shown(gain))
    return table


def by_pgd(task: Task, starts: Start, budget: int, size: float, restarts: int) -> np.ndarray:
    """Share of rows that PGD fools in each attack."""
    ball, plain = Ball("linf", RADIUS, 0.0, 1.0), digits_mlp().evaluation[1]

    def one(start: Start, data: Data) -> jax.Array:
        assert task.all_rows is not None
        victim = task.all_rows(start.instance, data, "test")
        points = strongest(
            start.key,
            input_gradient(plain, victim.params, victim.batch, victim.instance),
            functools.partial(scores, plain, victim),
            victim.batch.inputs,
            ball,
            steps=budget // restarts,
            restarts=restarts,
            step_size=size * RADIUS,
        )
        moved = {"perturbation": points - victim.batch.inputs}
        return task.metrics(moved, victim, start.instance)["success"]

    return np.asarray(jax.jit(jax.vmap(one, (0, None)))(starts, task.data))


def by_search(task: Task, starts: Start, evaluations: int) -> np.ndarray:
    """Share of rows that random search fools in each attack."""
    ball, plain = Ball("linf", RADIUS, 0.0, 1.0), digits_mlp().evaluation[1]

    def one(start: Start, data: Data) -> jax.Array:
        assert task.all_rows is not None
        victim = task.all_rows(start.instance, data, "test")
        score = functools.partial(scores, plain, victim)
        points = random_search(start.key, score, victim.batch.inputs, ball, evaluations=evaluations)
        moved = {"perturbation": points - victim.batch.inputs}
        return task.metrics(moved, victim, start.instance)["success"]

    return np.asarray(jax.jit(jax.vmap(one, (0, None)))(starts, task.data))


def scores(plain: Task, victim: Any, points: jax.Array) -> jax.Array:
    """How bad rows of a victim are."""
    batch = victim.batch._replace(inputs=points)
    return row_scores(plain, victim.params, batch, victim.instance)


def shown(values: Sequence[float] | np.ndarray) -> str:
    """A mean and its interval."""
    mean, low, high = mean_interval(np.asarray(values, np.float64))
    return f"{mean:.4f} [{low:.4f}, {high:.4f}]"


def main(options: Options) -> None:
    """Measure and print the tables."""
    processes.use_cpu_cores(len(processes.cores()))
    cells, console = Cells(options), wide_console()
    for name in options.tables:
        console.print({"defence": defence, "attack": attack}[name](options, cells))
    console.print(str(RESULTS / f"{options.name}.json"))


if __name__ == "__main__":
    main(tyro.cli(Options))
