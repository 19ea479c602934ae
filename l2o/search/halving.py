"""Asynchronous successive halving with resumed trials: which trial trains next, and how far.

Li et al. 2020, "A system for massively parallel hyperparameter tuning", algorithm 2. Trials are
scored at rungs, each `eta` times as many steps as the one before. A worker that is free takes the
best trial of the highest rung that is in the best 1/eta of those scored there and has not gone on,
and resumes it to the next rung; if there is none it begins a trial. So nobody waits for a rung to
fill. Optuna's pruner cannot resume a trial, and so lets the first ones run to their end.

The search has a budget of inner steps, which is given out with each job. A trial is begun or
resumed only while what would be left takes one trial to the last rung; when nothing else fits, the
best trials that can still go on do.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from l2o.search.space import Value


@dataclass(frozen=True)
class Trial:
    """A trial, as far as it is known.

    Attributes:
        number: Number of the trial, from 0 up.
        values: Values of the settings that are searched over.
        cost: Inner steps of one outer step.
        target: Outer steps to which it trains, or has trained: a rung.
        scores: Score at each rung that it has reached, by outer steps; more is better.
        error: What went wrong with it; empty if nothing did.
    """

    number: int
    values: Mapping[str, Value]
    cost: int
    target: int
    scores: Mapping[int, float] = field(default_factory=dict)
    error: str = ""

    @property
    def is_busy(self) -> bool:
        """Whether it is on its way to a rung."""
        return not self.error and self.target not in self.scores

    @property
    def budget_used(self) -> int:
        """Inner steps that it was given; all are counted of one that failed on the way."""
        return self.target * self.cost


@dataclass(frozen=True)
class Job:
    """What a worker does next.

    Attributes:
        trial: Trial that goes on; None for a new one.
        target: Outer steps to which it trains.
    """

    trial: Trial | None
    target: int


def rungs_of(num_steps: int, eta: int, num_rungs: int, chunk: int) -> tuple[int, ...]:
    """Outer steps at which trials are scored, in whole chunks, the last at the end.

    >>> rungs_of(300, 3, 3, 10)
    (30, 100, 300)

    Args:
        num_steps: Outer steps of a whole run, a multiple of `chunk`.
        eta: Number of times more steps that each rung has than the one before.
        num_rungs: Most rungs; there are fewer where some would be the same.
        chunk: Outer steps that are taken at a time.
    """
    steps = [num_steps / eta**k for k in range(num_rungs)]
    return tuple(sorted({max(1, round(s / chunk)) * chunk for s in steps}))


def promotable(trials: Sequence[Trial], rungs: Sequence[int], eta: int) -> list[Job]:
    """Find the trials that are among the best 1/eta of a rung and have not gone on.

    Returns:
        Jobs, those of higher rungs first, then those of higher scores.
    """
    jobs = []
    for rung, target in reversed(list(itertools.pairwise(rungs))):
        there = sorted((t for t in trials if rung in t.scores), key=lambda t: -t.scores[rung])
        best = there[: len(there) // eta]
        jobs += [Job(t, target) for t in best if t.target == rung and not t.error]
    return jobs


def next_job(
    trials: Sequence[Trial], rungs: Sequence[int], *, eta: int, budget: float, cost: int
) -> Job | None:
    """Choose what a free worker does, among what is left of the budget.

    Args:
        trials: All trials.
        rungs: Outer steps at which they are scored, increasing.
        eta: The best 1/eta of a rung go on.
        budget: Inner steps of the whole search.
        cost: Inner steps of one outer step of the next new trial.

    Returns:
        The job; None if there is none now, or while others are busy.
    """
    left = budget - sum(trial.budget_used for trial in trials)

    def fits(job: Job) -> bool:
        """Whether a job leaves enough to take a trial to the last rung."""
        after = [t for t in trials if not t.error and t is not job.trial]
        rest = [(rungs[-1] - t.target) * t.cost for t in after]
        rest.append((rungs[-1] - job.target) * (job.trial.cost if job.trial else cost))
        return price(job) + min(rest) <= left

    def price(job: Job) -> int:
        if job.trial is None:
            return job.target * cost
        return (job.target - job.trial.target) * job.trial.cost

    for job in [*promotable(trials, rungs, eta), Job(None, rungs[0])]:
        if fits(job):
            return job
    if any(trial.is_busy for trial in trials):
        return None
    steps = dict(itertools.pairwise(rungs))
    rest = [
        Job(t, steps[t.target])
        for t in sorted(trials, key=lambda t: (-t.target, -t.scores.get(t.target, -math.inf)))
        if t.target in steps and not t.error
    ]
    return next((job for job in rest if price(job) <= left), None)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest score of those at the highest rung, None if none has one."""
    scored = [trial for trial in trials if trial.scores and not trial.error]
    key = lambda t: (max(t.scores), t.scores[max(t.scores)], -t.number)
    return max(scored, key=key, default=None)
