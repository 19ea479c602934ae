"""Policies to set beside engines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from l2o import release
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.policies.policy import PolicyOptimizer
from l2o.policies.scheduler import scheduler
from l2o.release_file import given_as


def small_scheduler() -> PolicyOptimizer:
    """A scheduler of momentum SGD with so few weights that CMA-ES can keep their covariance."""
    return scheduler(hidden_size=8)


@dataclass(frozen=True, eq=False)
class TrainedPolicy:
    """A policy, and what its meta-training took.

    Attributes:
        name: Name in tables.
        lopt: The design.
        theta: The meta-trained theta.
        inner_steps: Inner steps of its meta-training, all tasks and members together; None if
            unknown.
        trained_on: Names and signatures of the tasks that it was meta-trained on.
    """

    name: str
    lopt: LearnedOptimizer
    theta: Theta
    inner_steps: int | None
    trained_on: Sequence[str]


def released_policy(source: str) -> TrainedPolicy:
    """Load a policy that has been meta-trained before, from a run folder or a release file."""
    with given_as("released"):
        lopt, theta = release.load(source)
    return trained_policy(source, lopt, theta, release.summary(source))


def trained_policy(
    name: str, lopt: LearnedOptimizer, theta: Theta, summary: Mapping[str, Any]
) -> TrainedPolicy:
    """Make a policy from the summary in its release file."""
    return TrainedPolicy(
        name, lopt, theta, summary.get("inner_steps"), summary.get("trained_on", [])
    )
