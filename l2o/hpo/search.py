"""A search for a schedule on one training problem, and the budget it has used."""

import functools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from l2o.evaluation.starts import Start
from l2o.evaluation.statistics import capped_losses
from l2o.evaluation.training import finite_cap, mean_loss, train_steps
from l2o.hpo.schedule import scheduled_sgd
from l2o.task import Data, Task

NUM_REPORTS = 8
"""How often a trial reports its loss, the last time at its end."""

Run = Any
"""Parameters and optimizer state of a trial."""


@dataclass(frozen=True, eq=False)
class Trainer:
    """Trains one problem by schedules, in stretches.

    A whole trial ends as `l2o.evaluate` would end it with the same schedule.

    Attributes:
        task: Task that is trained.
        start: Instance, first parameters, batches and probes of every trial.
        horizon: Inner steps of a trial.
    """

    task: Task
    start: Start
    horizon: int

    @property
    def reports(self) -> list[int]:
        """Steps after which a trial reports."""
        return sorted({self.horizon * (i + 1) // NUM_REPORTS for i in range(NUM_REPORTS)} - {0})

    def begin(self) -> Run:
        """Begin a trial."""
        params = jax.tree.map(jnp.asarray, self.start.params)
        return params, scheduled_sgd(jnp.zeros((self.horizon, 2))).init(params)

    def advance(self, run: Run, rows: np.ndarray, first: int, last: int) -> tuple[Run, float]:
        """Train from step `first` to step `last` by a schedule of shape (horizon, 2).

        Returns:
            The trial, and the loss on the start's probes; a diverged one is the task's cap.
        """
        stretch = compiled_stretch(self.task, self.horizon)
        run, loss = stretch(
            rows, run, self.start, self.task.data, np.int32(first), np.int32(last - first)
        )
        return run, float(capped_losses(np.asarray(loss), finite_cap(self.task)))


@functools.lru_cache(maxsize=4)
def compiled_stretch(task: Task, horizon: int) -> Callable[..., tuple[Run, jax.Array]]:
    """Make `(schedule, run, start, data, first, count) -> (run, loss)`, compiled once a task."""

    def stretch(rows, run: Run, start: Start, data: Data, first: jax.Array, count: jax.Array):
        tx = scheduled_sgd(rows)
        run, *_ = train_steps(task, tx, run, start, data, first, count, most=horizon)
        return run, mean_loss(task, run[0], start.probes, start.instance)

    return jax.jit(stretch)


class Report(NamedTuple):
    """What a trial reports.

    Attributes:
        budget_used: Inner steps of the whole search so far.
        trial: Name of the trial.
        step: Inner steps of this trial so far.
        loss: Loss on the probes.
        schedule: Shape (horizon, 2); if it may still change, with the last values held.
    """

    budget_used: int
    trial: str
    step: int
    loss: float
    schedule: np.ndarray


@dataclass
class Search:
    """Runs trials within a budget and keeps what they report.

    Attributes:
        trainer: Trainer of the problem.
        budget: Inner steps of all trials.
        reports: Reports of all trials, in order.
        num_trials: Number of trials begun by `trial`.
    """

    trainer: Trainer
    budget: int
    reports: list[Report] = field(default_factory=list)
    num_trials: int = 0

    @property
    def budget_used(self) -> int:
        """Inner steps so far."""
        return self.reports[-1].budget_used if self.reports else 0

    @property
    def num_random(self) -> int:
        """Trials that engines with a model draw at random first: a quarter, between 2 and 10."""
        return min(10, max(2, self.budget // self.trainer.horizon // 4))

    @property
    def has_budget(self) -> bool:
        """Whether another whole trial fits."""
        return self.budget_used + self.trainer.horizon <= self.budget

    def record(self, trial: str, num_steps: int, step: int, loss: float, rows: np.ndarray) -> None:
        """Record that a trial took `num_steps` more and is now at `step`."""
        self.reports.append(Report(self.budget_used + num_steps, trial, step, loss, rows))

    def trial(self, rows: np.ndarray) -> Iterator[tuple[int, float]]:
        """Train by a schedule; yield step and loss after each stretch. May be left early."""
        run, before, name = self.trainer.begin(), 0, str(self.num_trials)
        self.num_trials += 1
        for step in self.trainer.reports:
            run, loss = self.trainer.advance(run, rows, before, step)
            self.record(name, step - before, step, loss, rows)
            before = step
            yield step, loss

    def train(self, rows: np.ndarray) -> float:
        """Train a whole trial by a schedule; return its final loss."""
        *_, (_, loss) = self.trial(rows)
        return loss


def incumbents(reports: Sequence[Report]) -> list[Report]:
    """Find the trial whose last report is the lowest so far, whenever that or its report changes.

    A trial that gets worse again loses its place to the next best, which comes back as it was then.
    """
    latest: dict[str, Report] = {}
    best: list[Report] = []
    for report in reports:
        latest[report.trial] = report
        leader = min(latest.values(), key=lambda r: r.loss)
        if not best or not is_same(leader, best[-1]):
            best.append(leader._replace(budget_used=report.budget_used))
    return best


def incumbents_after(reports: Sequence[Report], budgets: Sequence[int]) -> list[Report]:
    """Keep the incumbents that are the last after one of these numbers of inner steps, in order."""
    last = {bisect_right(reports, b, key=lambda r: r.budget_used) - 1 for b in budgets}
    return [reports[i] for i in sorted(last - {-1})]


def is_same(report: Report, other: Report) -> bool:
    """Whether two reports are of one trial, as far as each other, by one schedule."""
    is_as_far = (report.trial, report.step) == (other.trial, other.step)
    return is_as_far and np.array_equal(report.schedule, other.schedule)
