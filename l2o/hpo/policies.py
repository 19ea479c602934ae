"""Policies to set beside engines: one small scheduler, meta-trained in three ways."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from l2o import lookup, release
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.meta_training import meta_trained
from l2o.policies import PolicyOptimizer, scheduler
from l2o.settings import PRESETS, MetaTraining


def small_scheduler() -> PolicyOptimizer:
    """A scheduler of momentum SGD with so few weights that CMA-ES can keep their covariance."""
    return scheduler(hidden_size=8)


_PPO = replace(
    PRESETS["scheduler"],
    optimizer="l2o.hpo.policies:small_scheduler",
    evaluate=False,
    quiet=True,
)

_BY_COST = replace(_PPO, std=0.03, window=150)

WAYS: Mapping[str, MetaTraining] = {
    "ppo": _PPO,
    "nres": replace(_BY_COST, estimator="nres", learning_rate=3e-3),
    "CMA_ES": replace(_BY_COST, estimator="CMA_ES", num_runs=2),
}
"""Settings of meta-training by name; all take about the same inner steps."""


@dataclass(frozen=True, eq=False)
class Meta:
    """A policy, and what its meta-training took.

    Attributes:
        name: for the table.
        lopt: the design.
        theta: what was found.
        inner_steps: of its meta-training, all tasks and members together; None if unknown.
        trained_on: names of tasks.
    """

    name: str
    lopt: LearnedOptimizer
    theta: Theta
    inner_steps: int | None
    trained_on: Sequence[str]


def check_ways(names: Sequence[str]) -> None:
    """Raises a `ValueError` that says what to type unless all are known and differ."""
    for name in names:
        if name not in WAYS:
            raise lookup.unknown("policies", name, WAYS)
    if len(set(names)) < len(names):
        raise ValueError(f"`policies` must differ; got {' '.join(names)}. Drop one.")


def settings_of(
    way: str, families: Sequence[str], horizon: tuple[int, int], seed: int, folder: Path
) -> MetaTraining:
    """How a policy is meta-trained for a comparison.

    Args:
        way: name in `WAYS`.
        families: whose training tasks it is meta-trained on.
        horizon: shortest and longest run.
        seed: of everything random.
        folder: that holds the run folder.
    """
    return replace(
        WAYS[way], task=tuple(families), horizon=horizon, seed=seed, run_dir=str(folder / way)
    )


def train_policy(settings: MetaTraining, inner_steps: float, console: Console) -> Meta:
    """Meta-trains a policy, or takes the one that a run there has found."""
    lopt, theta, summary = meta_trained(settings, inner_steps, console)
    return _meta(settings.estimator, lopt, theta, summary)


def released_policy(source: str) -> Meta:
    """One that has been meta-trained before, from a run folder or a release file."""
    lopt, theta = release.load(source)
    return _meta(source, lopt, theta, release.summary(source))


def _meta(name: str, lopt: LearnedOptimizer, theta: Theta, summary: Mapping[str, Any]) -> Meta:
    return Meta(name, lopt, theta, summary.get("inner_steps"), summary.get("trained_on", []))
