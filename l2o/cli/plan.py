"""A run's parts, from its settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax

from l2o import registry
from l2o.cli.by_cost import problem_learner
from l2o.cli.by_reward import policy_learner
from l2o.cli.population import check_divides, num_devices
from l2o.cli.settings import MetaTraining
from l2o.distributed.mesh import population_mesh
from l2o.evaluation.baselines import check_baselines
from l2o.freeze import Merge, freeze
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import Learner
from l2o.problem import check_can_train
from l2o.rng import check_seed, stream
from l2o.task import Key, Task, TaskFamily, validate_task


@dataclass(frozen=True, eq=False)
class Plan:
    """The parts of a run.

    Attributes:
        train: the tasks it is meta-trained on.
        evaluation: those to report on.
        lopt: the design.
        trained: the part of the first theta that is meta-trained.
        merge: from that part to a whole theta.
        learner: what takes the outer steps.
        log_every: outer steps of a chunk, the largest divisor of the steps up to the setting.
        checkpoint_every: outer steps between checkpoints, a multiple of `log_every`.
    """

    train: tuple[Task, ...]
    evaluation: tuple[Task, ...]
    lopt: LearnedOptimizer
    trained: Theta
    merge: Merge
    learner: Learner
    log_every: int
    checkpoint_every: int


def resolve(settings: MetaTraining) -> Plan:
    """Builds every part of a run, and so finds every mistake in its settings.

    Raises:
        ValueError: naming the setting, its value and what to type instead.
    """
    check_numbers(settings)
    registry.check_estimator(settings.estimator)
    lopt = registry.learned_optimizer(settings.optimizer)
    families = task_families(settings.task)
    train = tuple(task for family in families for task in family.train)
    trained, merge = freeze(first_theta(lopt, settings.seed), settings.freeze)
    mesh = population_mesh(num_devices(settings))
    check_divides(settings, mesh.size)
    if settings.estimator in registry.POLICY_GRADIENTS:
        learner = policy_learner(settings, lopt, families, merge, mesh)
    else:
        learner = problem_learner(settings, lopt, families, merge, mesh)
    jax.eval_shape(learner.init, jax.random.key(0), trained)  # whether theta suits it
    evaluation = registry.evaluation_tasks(families, settings.eval_tasks)
    for task in evaluation:
        validate_task(task)
        if settings.evaluate:
            check_can_train(lopt, task, settings.horizon[-1])
    at_most = min(settings.log_every, settings.steps)
    log_every = max(n for n in range(1, at_most + 1) if settings.steps % n == 0)
    return Plan(
        train=train,
        evaluation=evaluation,
        lopt=lopt,
        trained=trained,
        merge=merge,
        learner=learner,
        log_every=log_every,
        checkpoint_every=max(1, settings.checkpoint_every // log_every) * log_every,
    )


def check_numbers(settings: MetaTraining) -> None:
    """Raises a `ValueError` that says what to type if a number is out of its range."""
    default = MetaTraining()
    positive = ("steps", "learning_rate", "clip", "log_every", "checkpoint_every", "eval_seeds")
    for name in (*positive, "num_runs", "std", "final_std", "eval_steps"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            advice = getattr(default, name) or {"final_std": 0.001, "eval_steps": 1000}[name]
            raise ValueError(
                f"`{name}` must be positive and finite; got {value}. Try {name}={advice}."
            )
    if not 0 <= settings.weight_decay < math.inf:
        raise ValueError(
            f"`weight_decay` must not be negative; got {settings.weight_decay}. Try weight_decay=0."
        )
    check_seed(settings.seed)
    check_baselines(settings.eval_baselines, "eval_baselines")
    if len(settings.horizon) not in (1, 2):
        raise ValueError(
            f"`horizon` must be one number or two; got {len(settings.horizon)}. "
            "Try horizon=200, or horizon=100 1000."
        )
    if len(settings.weights) not in (0, len(settings.task)):
        raise ValueError(
            f"`weights` must be one number for each task; got {len(settings.weights)} for "
            f"{len(settings.task)}. Leave it out for equal weights."
        )
    for weight in settings.weights:
        if not 0 < weight < math.inf:
            raise ValueError(f"`weights` must be positive and finite; got {weight}. Try weights=1.")


def task_families(names: Sequence[str]) -> tuple[TaskFamily, ...]:
    """The families of these names, which must differ in the names of their tasks.

    Raises:
        ValueError: if there are none, one is unknown, or two hold tasks of the same name.
    """
    if not names:
        raise ValueError("`task` must name at least one task; got none. Try task=digits_mlp.")
    families = tuple(registry.task_family(name) for name in names)
    trained = [task.name for family in families for task in family.train]
    for name in trained:
        if trained.count(name) > 1:
            raise ValueError(
                f"`task` must name tasks that differ; got {name} twice. Drop or rename one."
            )
    return families


def first_theta(lopt: LearnedOptimizer, seed: int) -> Theta:
    """Where a run of this seed starts."""

    def init(key: Key) -> Theta:
        return lopt.init(jax.random.split(key)[0])

    return jax.jit(init)(stream(seed, "meta_training"))  # one program, not one a draw
