"""What every way to meta-train has: what a run gives to it, and the meta-optimizer."""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import optax
from jax.sharding import Mesh

from l2o import registry
from l2o.estimators.estimator import Estimator, average_estimators
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import Learner
from l2o.objective import Objective
from l2o.problem import Problem, inner_problem, map_theta
from l2o.task import Task, TaskFamily

CombinerName = Literal["mean", "mgda", "pcgrad", "cagrad"]
WeightingName = Literal["fixed", "worst_case", "learning_progress"]


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What a run gives to every way to meta-train.

    Attributes:
        families: Families to meta-train on, with tasks of different names.
        weights: Weight of each family in the meta-gradient.
        lopt: Design whose theta is found.
        unravel: Function from the vector that is meta-trained to the whole theta.
        horizon: Inner steps of the shortest and of the longest run.
        window: Inner steps between two outer steps.
        curriculum: Outer steps over which the longest run grows from the shortest.
        steps: Outer steps of the run.
        ema_decay: Decay rate of the exponential moving average of theta.
        mesh: Devices over which the population is spread.
    """

    families: Sequence[TaskFamily]
    weights: Sequence[float]
    lopt: LearnedOptimizer
    unravel: Callable[[Theta], Theta]
    horizon: tuple[int, int]
    window: int
    curriculum: int
    steps: int
    ema_decay: float
    mesh: Mesh

    @property
    def tasks(self) -> list[Task]:
        """Tasks that are meta-trained on side by side."""
        return [task for family in self.families for task in family.train]

    @property
    def task_weights(self) -> dict[str, float]:
        """Weight of each task: its family's, shared out."""
        return {
            name: share
            for family, weight in zip(self.families, self.weights, strict=True)
            for name, share in family.task_weights(weight).items()
        }

    @property
    def report_groups(self) -> dict[str, list[str]] | None:
        """Names of the tasks of each family, which are reported together, if there are several."""
        groups = {family.name: [task.name for task in family.train] for family in self.families}
        return groups if len(groups) > 1 else None

    def problems(self, objective: Objective) -> dict[str, Problem]:
        """Training runs of each task, as a function of the vector that is meta-trained."""
        return {
            task.name: map_theta(
                inner_problem(
                    task,
                    self.lopt,
                    horizon=self.horizon,
                    window=self.window,
                    objective=objective,
                    curriculum=self.curriculum,
                ),
                self.unravel,
            )
            for task in self.tasks
        }

    def averaged(
        self, estimators: Mapping[str, Estimator], combine: CombinerName, weighting: WeightingName
    ) -> Estimator:
        """The weighted mean of an estimator for each task, or what a combiner makes of them.

        Raises:
            ValueError: if there is one task alone, whose meta-gradient needs neither a combiner nor
                a weight.
        """
        for name, value, default in (
            ("combine", combine, "mean"),
            ("weighting", weighting, "fixed"),
        ):
            if value != default and len(estimators) == 1:
                raise ValueError(
                    f"`{name}` must be {default} on one task, {next(iter(estimators))}; got "
                    f"{value}. Drop it, or add a task."
                )
        return average_estimators(
            estimators,
            weights=self.task_weights,
            combine=None if combine == "mean" else registry.COMBINERS[combine],
            weighting=None if weighting == "fixed" else registry.WEIGHTINGS[weighting](),
            report_groups=self.report_groups,
        )


@dataclass(frozen=True)
class Method(abc.ABC):
    """A way to meta-train."""

    name: ClassVar[str]

    @property
    @abc.abstractmethod
    def num_runs(self) -> int:
        """Training runs side by side on each task, by which methods are comparable."""

    @property
    def population(self) -> int:
        """Members that devices share out whole: runs, unless some share their draws."""
        return self.num_runs

    @abc.abstractmethod
    def with_runs(self, num_runs: int) -> Self:
        """The same with a population of another size."""

    @abc.abstractmethod
    def build(self, given: Ingredients) -> Learner:
        """The learner; raises a `ValueError` for a mistake in the options."""


@dataclass(frozen=True)
class MetaOptimizer:
    """AdamW with a warm-up and a cosine decay to a twentieth, after clipping by global norm."""

    learning_rate: float = 3e-3
    """Peak learning rate of the meta-optimizer."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of the meta-optimizer."""
    clip: float = 1.0
    """Global norm above which the meta-gradient is scaled down."""

    def build(self, steps: int, updates_per_step: int = 1) -> optax.GradientTransformation:
        """The transformation for a run of `steps` outer steps.

        Raises:
            ValueError: for a rate, decay or norm that makes no sense.
        """
        check_positive(learning_rate=self.learning_rate, clip=self.clip)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"`weight_decay` must not be negative; got {self.weight_decay}. Try weight_decay=0."
            )
        schedule = optax.warmup_cosine_decay_schedule(
            init_value=0.0,
            peak_value=self.learning_rate,
            warmup_steps=updates_per_step * min(50, steps // 10),
            decay_steps=updates_per_step * steps,
            end_value=self.learning_rate / 20,
        )
        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(schedule, weight_decay=self.weight_decay),
        )


ADAMW = MetaOptimizer()
"""With its defaults."""

LOG_LOSS = Objective(summary="log")
"""The area under the logarithm of the loss curve."""

EXAMPLES: Mapping[str, float] = {
    **{"learning_rate": 0.003, "clip": 1.0, "final_std": 0.001, "steps": 1000, "log_every": 10},
    **{"checkpoint_every": 100, "eval.seeds": 16, "eval.horizon": 1000, "weights": 1.0},
    **{"runs_per_candidate": 4, "horizon": 1000, "seeds": 16, "processes": 2},
    **{"validate_every": 100, "validate_seeds": 8, "budget": 2e7},
}
"""What an error about a number suggests."""


def check_positive(**values: float | None) -> None:
    """Raises a `ValueError` that says what to type for a number that is not positive and finite."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise ValueError(
                f"`{name}` must be positive and finite; got {value}. Try {name}={EXAMPLES[name]}."
            )


def std_schedule(std: float, final_std: float | None, steps: int) -> float | optax.Schedule:
    """The standard deviation over outer steps, constant or falling geometrically."""
    check_positive(final_std=final_std)
    if final_std is None or not 0 < std < math.inf:
        return std
    return optax.exponential_decay(std, max(steps - 1, 1), final_std / std)
