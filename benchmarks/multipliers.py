"""Whether a learned optimizer takes steps of the right size: its losses at multiples of its rate.

`python benchmarks/multipliers.py FILE python_lstm python_lstm_16` trains a task of a family by the
learned optimizer, and by its design before meta-training, with all updates times a number. Of one
whose losses are lowest at another number than 1 the step size is not what suits the task. The mean
of the probe loss at the end over the seeds, with its standard error.
"""

import sys
from dataclasses import dataclass
from typing import Annotated

import jax
import numpy as np
import optax
import tyro

import l2o
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Trainer
from l2o.learned_optimizer import Theta
from l2o.registry import task_family


@dataclass(frozen=True)
class Options:
    """Trains a task at multiples of a learned optimizer's rate."""

    optimizer: Annotated[str, tyro.conf.Positional]
    """Name or file."""
    family: Annotated[str, tyro.conf.Positional]
    """Family of the task."""
    task: Annotated[str, tyro.conf.Positional]
    """Name of the task."""
    multipliers: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)
    """What its updates are multiplied by."""
    noisy_labels: bool = False
    """Whether up to half of the training labels are random, `l2o.noisy_labels`."""
    horizon: int = 500
    """Steps."""
    seeds: int = 8
    """Runs."""


def main(options: Options) -> None:
    """Train and print."""
    if options.seeds < 2:
        sys.exit(f"error: `seeds` must be at least 2; got {options.seeds}. Try --seeds 8.")
    family = task_family(options.family)
    tasks = {task.name: task for task in (*family.train, *family.evaluation)}
    if options.task not in tasks:
        sys.exit(f"error: `task` must be among {', '.join(tasks)}; got {options.task}.")
    task = tasks[options.task]
    if options.noisy_labels:
        task = l2o.noisy_labels(task)
    starts = draw_starts(l2o.stream(0, "evaluation"), task, options.seeds)
    lopt, theta = l2o.load(options.optimizer)

    for name, weights in (("learned", theta), ("untrained", lopt.init(jax.random.key(0)))):

        def scaled(multiplier: jax.Array, weights: Theta = weights) -> optax.GradientTransformation:
            tx = lopt.transform(weights, horizon=options.horizon)
            return optax.chain(tx, optax.scale(multiplier))

        trainer = Trainer(task, scaled, horizon=options.horizon)
        curves = trainer.train(np.asarray(options.multipliers, np.float32), starts)
        losses = [np.asarray(curve.final_loss) for curve in curves]
        shown = (
            f"x {m:g} {loss.mean():.4g} ({loss.std(ddof=1) / len(loss) ** 0.5:.1g})"
            for m, loss in zip(options.multipliers, losses, strict=True)
        )
        print(f"{task.name}, {name}:", "  ".join(shown), flush=True)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options))
    except ValueError as error:
        sys.exit(f"error: {error}")
