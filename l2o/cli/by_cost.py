"""Learners that go by what training runs cost: estimators and evolution strategies."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import optax
from jax.sharding import Mesh

from l2o import registry
from l2o.cli.common import OF_REWARDS, check_unused, meta_optimizer, shares_of
from l2o.cli.settings import MetaTraining
from l2o.estimators.estimator import Estimator, average_estimators
from l2o.evolution.learner import evolution_learner
from l2o.evolution.strategies import SCHEDULED_STD
from l2o.freeze import Unravel
from l2o.learned_optimizer import LearnedOptimizer
from l2o.learner import Learner, gradient_learner
from l2o.objective import Objective
from l2o.problem import Problem, inner_problem, map_theta
from l2o.task import TaskFamily

if TYPE_CHECKING:
    from l2o.cli.diagnose import Diagnose


def problem_learner(
    settings: MetaTraining,
    lopt: LearnedOptimizer,
    families: Sequence[TaskFamily],
    unravel: Unravel,
    mesh: Mesh,
) -> Learner:
    """What meta-trains by the cost of training runs."""
    check_unused(settings, OF_REWARDS, "reinforce and ppo")
    objective = objective_of(settings)
    problems = {
        task.name: map_theta(
            inner_problem(
                task,
                lopt,
                horizon=(settings.horizon[0], settings.horizon[-1]),
                window=settings.window,
                objective=objective,
            ),
            unravel,
        )
        for family in families
        for task in family.train
    }
    return make_learner(settings, problems, families, mesh)


def objective_of(settings: "MetaTraining | Diagnose") -> Objective:
    """What a run costs, from the settings of either command."""
    return Objective(
        summary=settings.objective,
        measure=settings.measure,
        measure_on=settings.measure_on,
        measure_batches=settings.measure_batches,
        target=settings.target,
        normalize=settings.normalize,
    )


def make_learner(
    settings: MetaTraining,
    problems: Mapping[str, Problem],
    families: Sequence[TaskFamily],
    mesh: Mesh,
) -> Learner:
    """What takes the outer steps: a meta-gradient and an optimizer on theta."""
    of_task, together = shares_of(settings, families)
    if settings.estimator in registry.STRATEGIES:
        check_strategy(settings)
        return evolution_learner(
            problems,
            settings.estimator,
            population_size=2 * settings.num_pairs,
            runs_per_candidate=settings.num_runs,
            std=make_std(settings),
            optimizer=meta_optimizer(settings),
            ema_decay=settings.ema_decay,
            weights=of_task,
            report_groups=together,
            mesh=mesh,
        )
    return gradient_learner(
        average_estimators(
            {name: make_estimator(settings, problem, mesh) for name, problem in problems.items()},
            weights=of_task,
            report_groups=together,
        ),
        meta_optimizer(settings),
        ema_decay=settings.ema_decay,
    )


def make_estimator(settings: MetaTraining, problem: Problem, mesh: Mesh) -> Estimator:
    """The estimator that the settings name; backpropagation takes two runs for each pair."""
    name, num_pairs = settings.estimator, settings.num_pairs
    if name not in registry.EVOLUTION and settings.shaping != "none":
        raise ValueError(
            f"`shaping` goes with {', '.join(registry.EVOLUTION)}; got {settings.shaping} with "
            f"{name}. Drop it."
        )
    if name in registry.BACKPROP:
        if num_pairs < 1:
            raise ValueError(f"`num_pairs` must be at least 1; got {num_pairs}. Try num_pairs=16.")
        if settings.final_std is not None:
            raise ValueError(
                f"`final_std` goes with perturbations; got {settings.final_std} with {name}, which "
                "draws none. Drop it."
            )
        return registry.BACKPROP[name](problem, num_members=2 * num_pairs, mesh=mesh)
    std = make_std(settings)
    if name in registry.MIXED:
        return registry.MIXED[name](problem, num_pairs=num_pairs, std=std, mesh=mesh)
    return registry.EVOLUTION[name](
        problem, num_pairs=num_pairs, std=std, shaping=settings.shaping, mesh=mesh
    )


def check_strategy(settings: MetaTraining) -> None:
    """Raises a `ValueError` that says what to type for what an evolution strategy cannot take."""
    strategy = settings.estimator
    if settings.num_pairs < 2:
        raise ValueError(
            f"`num_pairs` must be at least 2 for {strategy}; got {settings.num_pairs}. "
            "Try num_pairs=4."
        )
    if settings.shaping != "none":
        raise ValueError(
            f"`shaping` goes with {', '.join(registry.EVOLUTION)}; got {settings.shaping} with "
            f"{strategy}. Drop it."
        )
    if settings.final_std is not None and strategy not in SCHEDULED_STD:
        raise ValueError(
            f"`final_std` must be left to {strategy}, which adapts it; got {settings.final_std}. "
            "Drop it."
        )


def make_std(settings: MetaTraining) -> float | optax.Schedule:
    """The standard deviation of perturbations, constant or falling geometrically."""
    if settings.final_std is None:
        return settings.std
    rate = settings.final_std / settings.std
    return optax.exponential_decay(settings.std, max(settings.steps - 1, 1), rate)
