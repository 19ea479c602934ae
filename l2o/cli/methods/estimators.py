"""Descent of a meta-gradient that evolution strategies or backpropagation estimate."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from l2o import registry
from l2o.cli.arguments import Flat, Real
from l2o.cli.methods.method import (
    ADAMW,
    LOG_LOSS,
    CombinerName,
    Ingredients,
    MetaOptimizer,
    Method,
    WeightingName,
    std_schedule,
)
from l2o.estimators.estimator import Estimator
from l2o.estimators.population import Shaping
from l2o.learner import Learner, gradient_learner
from l2o.objective import Objective
from l2o.problem import Problem


@dataclass(frozen=True)
class AntitheticPairs(Method):
    """What methods on antithetic pairs have in common."""

    num_pairs: int = 16
    """Antithetic pairs of training runs on each task variant."""
    std: float = 0.01
    """Standard deviation of the perturbations of theta."""
    final_std: Real = None
    """Standard deviation at the end, to which it falls geometrically; constant if not given."""
    objective: Flat[Objective] = LOG_LOSS
    combine: CombinerName = "mean"
    """What becomes of the meta-gradients of several tasks: their mean, or see `l2o list`."""
    weighting: WeightingName = "fixed"
    """Whether the weights of several tasks move, to the worst or to those on which most is learned.
    """
    meta_optimizer: Flat[MetaOptimizer] = ADAMW

    @property
    def num_runs(self) -> int:
        """Both members of all pairs."""
        return 2 * self.num_pairs

    @property
    def population(self) -> int:
        """Pairs."""
        return self.num_pairs

    def with_runs(self, num_runs: int) -> Self:
        """The same with half as many pairs as runs."""
        return replace(self, num_pairs=num_runs // 2)

    def estimator(self, problem: Problem, given: Ingredients) -> Estimator:
        """The estimator on one task."""
        return registry.ESTIMATORS[self.name](
            problem,
            num_pairs=self.num_pairs,
            std=std_schedule(self.std, self.final_std, given.steps),
            mesh=given.mesh,
        )

    def build(self, given: Ingredients) -> Learner:
        """Descent of the estimated meta-gradient."""
        problems = given.problems(self.objective)
        return gradient_learner(
            given.averaged(
                {name: self.estimator(p, given) for name, p in problems.items()},
                self.combine,
                self.weighting,
            ),
            self.meta_optimizer.build(given.steps),
            ema_decay=given.ema_decay,
        )


@dataclass(frozen=True)
class Shaped(AntitheticPairs):
    """Antithetic pairs whose loss differences may be shaped."""

    shaping: Shaping = "none"
    """What a pair's loss difference counts as: itself, its sign, the difference of the centered
    ranks, or itself over the spread of the population."""

    def estimator(self, problem: Problem, given: Ingredients) -> Estimator:
        """The estimator on one task."""
        return registry.EVOLUTION[self.name](
            problem,
            num_pairs=self.num_pairs,
            std=std_schedule(self.std, self.final_std, given.steps),
            shaping=self.shaping,
            mesh=given.mesh,
        )


@dataclass(frozen=True)
class FullES(Shaped):
    """Evolution strategies over whole runs; unbiased."""

    name: ClassVar[str] = "full_es"


@dataclass(frozen=True)
class TruncatedES(Shaped):
    """Evolution strategies within a window; biased."""

    name: ClassVar[str] = "truncated_es"


@dataclass(frozen=True)
class PES(Shaped):
    """Persistent ES: a perturbation for each window."""

    name: ClassVar[str] = "pes"


@dataclass(frozen=True)
class NRES(Shaped):
    """Noise-reuse ES: a perturbation for each run."""

    name: ClassVar[str] = "nres"


@dataclass(frozen=True)
class ESSingle(Shaped):
    """NRES with all pairs at one stage of their runs."""

    name: ClassVar[str] = "es_single"


@dataclass(frozen=True)
class VarianceWeighted(AntitheticPairs):
    """Truncated ES and gradient, by inverse variance."""

    name: ClassVar[str] = "variance_weighted"


@dataclass(frozen=True)
class Backpropagation(Method):
    """What methods that backpropagate have in common."""

    num_members: int = 32
    """Training runs on each task variant."""
    objective: Flat[Objective] = LOG_LOSS
    combine: CombinerName = "mean"
    """What becomes of the meta-gradients of several tasks: their mean, or see `l2o list`."""
    weighting: WeightingName = "fixed"
    """Whether the weights of several tasks move, to the worst or to those on which most is learned.
    """
    meta_optimizer: Flat[MetaOptimizer] = ADAMW

    @property
    def num_runs(self) -> int:
        """Members."""
        return self.num_members

    def with_runs(self, num_runs: int) -> Self:
        """The same with as many members."""
        return replace(self, num_members=num_runs)

    def build(self, given: Ingredients) -> Learner:
        """Descent of the mean gradient."""
        make = registry.BACKPROP[self.name]
        estimators = {
            name: make(problem, num_members=self.num_members, mesh=given.mesh)
            for name, problem in given.problems(self.objective).items()
        }
        return gradient_learner(
            given.averaged(estimators, self.combine, self.weighting),
            self.meta_optimizer.build(given.steps),
            ema_decay=given.ema_decay,
        )


@dataclass(frozen=True)
class FullGrad(Backpropagation):
    """Backpropagation through whole runs."""

    name: ClassVar[str] = "full_grad"


@dataclass(frozen=True)
class TruncatedGrad(Backpropagation):
    """Backpropagation through a window; biased."""

    name: ClassVar[str] = "truncated_grad"


ESTIMATORS = (
    *(FullES, TruncatedES, PES, NRES, ESSingle),
    *(FullGrad, TruncatedGrad, VarianceWeighted),
)
