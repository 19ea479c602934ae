"""Strategies of evosax."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from l2o.cli.arguments import Flat, Real
from l2o.cli.methods.method import (
    ADAMW,
    LOG_LOSS,
    Ingredients,
    MetaOptimizer,
    Method,
    check_positive,
    std_schedule,
)
from l2o.evolution.learner import evolution_learner
from l2o.learner import Learner
from l2o.objective import Objective


@dataclass(frozen=True)
class Evosax(Method):
    """What strategies of evosax have in common: they rank candidates by whole runs."""

    population_size: int = 32
    """Candidates of a generation."""
    runs_per_candidate: int = 4
    """Whole training runs of each candidate on each task variant."""
    std: float = 0.01
    """Standard deviation of the first generation."""
    objective: Flat[Objective] = LOG_LOSS

    @property
    def num_runs(self) -> int:
        """Candidates."""
        return self.population_size

    def with_runs(self, num_runs: int) -> Self:
        """The same with as many candidates."""
        return replace(self, population_size=num_runs)

    def build(self, given: Ingredients) -> Learner:
        """The strategy; some keep their standard deviation, or need a meta-optimizer."""
        check_positive(runs_per_candidate=self.runs_per_candidate)
        final_std: float | None = getattr(self, "final_std", None)
        meta_optimizer: MetaOptimizer | None = getattr(self, "meta_optimizer", None)
        return evolution_learner(
            given.problems(self.objective),
            self.name,
            population_size=self.population_size,
            runs_per_candidate=self.runs_per_candidate,
            std=std_schedule(self.std, final_std, given.steps),
            optimizer=meta_optimizer and meta_optimizer.build(given.steps),
            ema_decay=given.ema_decay,
            weights=given.task_weights,
            report_groups=given.report_groups,
            mesh=given.mesh,
        )


@dataclass(frozen=True)
class CMA(Evosax):
    """CMA-ES, for theta of up to 2000 numbers."""

    name: ClassVar[str] = "CMA_ES"


@dataclass(frozen=True)
class SepCMA(Evosax):
    """CMA-ES with a diagonal covariance, for any theta."""

    name: ClassVar[str] = "Sep_CMA_ES"


@dataclass(frozen=True)
class LMMA(Evosax):
    """CMA-ES of few directions, for large theta."""

    name: ClassVar[str] = "LM_MA_ES"


@dataclass(frozen=True)
class SNES(Evosax):
    """Natural gradient, a step size for each number."""

    name: ClassVar[str] = "SNES"


@dataclass(frozen=True)
class OpenES(Evosax):
    """Ranks of antithetic pairs, into a meta-optimizer."""

    final_std: Real = None
    """Standard deviation at the end, to which it falls geometrically; constant if not given."""
    meta_optimizer: Flat[MetaOptimizer] = ADAMW

    name: ClassVar[str] = "Open_ES"


@dataclass(frozen=True)
class PGPE(Evosax):
    """Open_ES with a std for each number of theta."""

    meta_optimizer: Flat[MetaOptimizer] = ADAMW

    name: ClassVar[str] = "PGPE"


@dataclass(frozen=True)
class SimpleGA(Evosax):
    """A genetic algorithm: the better half, mutated."""

    final_std: Real = None
    """Standard deviation at the end, to which it falls geometrically; constant if not given."""

    name: ClassVar[str] = "SimpleGA"


STRATEGIES = (CMA, SepCMA, LMMA, SNES, OpenES, PGPE, SimpleGA)
