"""Validation of theta while it is meta-trained: scores on tasks that it is not meta-trained on.

Theta trains a few runs of each task, always the same ones, to the end of the horizon. A run's score
is that of `l2o.evaluation.scores`, with the validation loss at its start as the scale:

    score = log(start / max(final, start / 1000)) / log(1000),   0 where final >= start or it fails.

So 0 is no progress, and 1 a thousandth of the loss at the start or less. A task's score is the mean
over its runs, theta's the mean over tasks. The theta with the highest is kept. As it was chosen by
these tasks, it counts as having seen them.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from l2o.evaluation.scores import loss_scores
from l2o.evaluation.starts import draw_starts
from l2o.evaluation.training import Trainer, on_split
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.rng import key_of
from l2o.runs.logging import MetricsLog, compute_seconds, read_metrics
from l2o.task import Key, Task

Row = Mapping[str, Any]
"""Line of a `validation.jsonl`."""

SPLITS = ("valid",)


class Validator:
    """Scores of theta on a few runs of each of several tasks, the same runs each time.

    What trains a task is compiled once, as theta is an argument of it.

    >>> import l2o
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> lopt = l2o.learnable_sgd(learning_rate=0.5)
    >>> tasks = [rotated_quadratic(2)]
    >>> key = l2o.stream(0, "validation")
    >>> validator = Validator(key, tasks, lopt, horizon=10, num_seeds=4)
    >>> sorted(validator(lopt.init(jax.random.key(0))))
    ['quadratic_2/diverged', 'quadratic_2/loss', 'quadratic_2/score', 'score']

    Args:
        key: Random key from `stream(seed, "validation")`.
        tasks: Tasks to train, of different names.
        lopt: Design whose thetas are scored.
        horizon: Inner steps of each run, which the design is told, too.
        num_seeds: Number of runs of each task.

    Raises:
        ValueError: If a number is not positive, a task is malformed, or its validation loss at the
            start of a run is not positive and finite.
    """

    def __init__(
        self,
        key: Key,
        tasks: Sequence[Task],
        lopt: LearnedOptimizer,
        *,
        horizon: int,
        num_seeds: int,
    ) -> None:
        def make(theta: Theta) -> optax.GradientTransformation:
            return lopt.transform(theta, horizon=horizon)

        self.tasks = tasks
        self.inner_steps = len(tasks) * num_seeds * horizon
        self.is_compiled = False
        self.runs = []
        for task in tasks:
            starts = draw_starts(key_of(key, task.name), task, num_seeds)
            measure = jax.jit(partial(on_split, task, split="valid"))
            params = jax.tree.map(lambda x: x[None], starts.params)
            scale = np.asarray(measure(params, starts, task.data)["loss"], np.float64)[0]
            is_good = np.isfinite(scale) & (scale > 0)
            if not np.all(is_good):
                raise ValueError(
                    "`tasks` must have a positive, finite validation loss at the start of a run, "
                    f"by which final losses are scored; got {scale[~is_good][0]} of {task.name}. "
                    "Try another task."
                )
            trainer = Trainer(task, make, horizon=horizon, probe_every=horizon)
            self.runs.append((trainer, starts, scale))

    def compile(self, theta: Theta) -> None:
        """Compile all that is needed, which the first call does otherwise."""
        if not self.is_compiled:
            for trainer, starts, _ in self.runs:
                trainer.compile(_stacked(theta), starts, splits=SPLITS)
            self.is_compiled = True

    def __call__(self, theta: Theta) -> dict[str, float]:
        """Score theta.

        Returns:
            "score", the mean over tasks, and for each its "<task>/score", its "<task>/loss" (the
            median final validation loss, a diverged one counting as the cap) and its
            "<task>/diverged" (the share of runs).
        """
        found, scores = {}, []
        for trainer, starts, scale in self.runs:
            (curves,) = trainer.train(_stacked(theta), starts, splits=SPLITS)
            loss, name = curves.valid["loss"], trainer.task.name
            final = np.where(curves.diverged, np.inf, loss)
            scores.append(float(np.mean(loss_scores(final[:, None], scale[:, None]))))
            found[f"{name}/score"] = scores[-1]
            found[f"{name}/loss"] = float(np.median(loss))
            found[f"{name}/diverged"] = float(np.mean(curves.diverged))
        return {"score": float(np.mean(scores)), **found}


class ValidationCurve:
    """The scores of a run's thetas, as lines of a file.

    A line holds `step`, what a `Validator` gives, `inner_steps` (of validation, so far) and
    `seconds` without compilation. `fit` drops lines after the checkpoint that a run goes on from.

    Args:
        path: Path of the file, `RunFolder.validation`.
        validator: Validator that scores.
    """

    def __init__(self, path: Path, validator: Validator) -> None:
        self.path, self.validator = path, validator

    @property
    def last_step(self) -> int:
        """Outer step of the last line; 0 before the first."""
        rows = read_rows(self.path)
        return rows[-1]["step"] if rows else 0

    def add(self, step: int, theta: Theta) -> tuple[Row, bool]:
        """Score theta of a step, unless that has been done; the line is durable then.

        Args:
            step: Number of outer steps taken, no less than that of any line.
            theta: Theta that is released.

        Returns:
            The line, and whether the score is above zero and those of all lines before.

        Raises:
            RunError: If the file cannot be written, or is damaged.
        """
        rows = read_rows(self.path)
        if not rows or rows[-1]["step"] != step:
            self.validator.compile(theta)
            started = time.perf_counter()
            scores = self.validator(theta)
            before = rows[-1]["inner_steps"] if rows else 0
            row = {
                "step": step,
                **scores,
                "inner_steps": before + self.validator.inner_steps,
                "seconds": time.perf_counter() - started,
            }
            MetricsLog(self.path).write(row)
            rows.append(row)
        return rows[-1], best_row(rows) is rows[-1]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a `validation.jsonl`; none if there is no such file.

    Raises:
        RunError: If a line before the last is no JSON.
    """
    return read_metrics(path) if path.exists() else []


def best_row(rows: Sequence[Row]) -> Row | None:
    """The first line with the highest score, or None if none is above zero.

    >>> best_row([{"step": 10, "score": 0.5}, {"step": 20, "score": 0.5}])["step"]
    10
    """
    best = max(rows, key=lambda row: row["score"], default=None)
    return best if best is not None and best["score"] > 0.0 else None


def validation_cost(path: Path) -> dict[str, float]:
    """Sum up what validation took, for the summary of a release file; empty if there was none.

    Returns:
        "validation_seconds" over all sessions, without compilation, and "validation_inner_steps".

    Raises:
        RunError: If a line before the last is no JSON.
    """
    if not (rows := read_rows(path)):
        return {}
    return {
        "validation_seconds": compute_seconds(path),
        "validation_inner_steps": rows[-1]["inner_steps"],
    }


def _stacked(theta: Theta) -> Theta:
    """Theta as the only setting of a `Trainer`."""
    return jax.tree.map(lambda x: np.asarray(x)[None], theta)
