"""The ways to meta-train: each is a frozen dataclass of its own options, which builds its learner.

At the command line each is a word after the options of the run, with its own options behind it.
"""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import ClassVar, Self

import optax
from jax.sharding import Mesh

from l2o import registry
from l2o.cli.arguments import Flat, Real
from l2o.estimators.estimator import Estimator, average_estimators
from l2o.estimators.population import Shaping
from l2o.evolution.learner import evolution_learner
from l2o.learned_optimizer import LearnedOptimizer, Theta
from l2o.learner import Learner, gradient_learner
from l2o.objective import Objective
from l2o.policies.policy import PolicyOptimizer
from l2o.problem import Problem, inner_problem, map_theta
from l2o.rl.environment import CreditName, Environment, training_environment
from l2o.rl.gae import ReturnBaseline
from l2o.rl.ppo import ppo_learner, with_critic
from l2o.rl.reinforce import reinforce
from l2o.rl.reward import Reward
from l2o.task import Task, TaskFamily


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
            task.name: weight / len(family.train)
            for family, weight in zip(self.families, self.weights, strict=True)
            for task in family.train
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
                    task, self.lopt, horizon=self.horizon, window=self.window, objective=objective
                ),
                self.unravel,
            )
            for task in self.tasks
        }

    def averaged(self, estimators: Mapping[str, Estimator]) -> Estimator:
        """The weighted mean of an estimator for each task."""
        return average_estimators(
            estimators, weights=self.task_weights, report_groups=self.report_groups
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


LOG_LOSS = Objective(summary="log")
"""The area under the logarithm of the loss curve."""

EXAMPLES: Mapping[str, float] = {
    **{"learning_rate": 0.003, "clip": 1.0, "final_std": 0.001, "steps": 1000, "log_every": 10},
    **{"checkpoint_every": 100, "eval.seeds": 16, "eval.horizon": 1000, "weights": 1.0},
    **{"runs_per_candidate": 4, "horizon": 1000, "seeds": 16},
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
    meta_optimizer: Flat[MetaOptimizer] = MetaOptimizer()

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
            given.averaged({name: self.estimator(p, given) for name, p in problems.items()}),
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
    meta_optimizer: Flat[MetaOptimizer] = MetaOptimizer()

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
            given.averaged(estimators),
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
    meta_optimizer: Flat[MetaOptimizer] = MetaOptimizer()

    name: ClassVar[str] = "Open_ES"


@dataclass(frozen=True)
class PGPE(Evosax):
    """Open_ES with a std for each number of theta."""

    meta_optimizer: Flat[MetaOptimizer] = MetaOptimizer()

    name: ClassVar[str] = "PGPE"


@dataclass(frozen=True)
class SimpleGA(Evosax):
    """A genetic algorithm: the better half, mutated."""

    final_std: Real = None
    """Standard deviation at the end, to which it falls geometrically; constant if not given."""

    name: ClassVar[str] = "SimpleGA"


@dataclass(frozen=True)
class PolicyGradient(Method):
    """What policy gradients have in common: the reward, and how it is learned from."""

    discount: float = 1.0
    """Discount of the rewards of later actions."""
    entropy_weight: float = 0.0
    """Weight of the entropy of actions, which is rewarded."""
    credit: CreditName = "team"
    """Whether all agents get the reward, or each the difference it made, by more inner steps."""
    reward: Reward = field(default_factory=Reward)
    meta_optimizer: Flat[MetaOptimizer] = MetaOptimizer()

    def policy(self, given: Ingredients) -> PolicyOptimizer:
        """The design, whose actor takes the vector that is meta-trained.

        Raises:
            ValueError: if the design is no policy.
        """
        lopt = given.lopt
        if not isinstance(lopt, PolicyOptimizer):
            raise ValueError(
                f"`optimizer` must be a policy for {self.name}; got {lopt.name}. "
                f"Try {', '.join(registry.POLICIES)}."
            )
        actor = lopt.policy.actor
        apply = lambda vector, *inputs: actor.apply(given.unravel(vector), *inputs)
        return replace(lopt, policy=replace(lopt.policy, actor=replace(actor, apply=apply)))

    def environments(self, given: Ingredients, policy: PolicyOptimizer) -> dict[str, Environment]:
        """The training runs of each task, as a policy acts in them; the critic is told which."""
        return {
            task.name: training_environment(
                task,
                policy.policy,
                horizon=given.horizon,
                window=given.window,
                reward=self.reward,
                credit=self.credit,
                privileged=tuple(float(task is other) for other in given.tasks),
            )
            for task in given.tasks
        }


@dataclass(frozen=True)
class Reinforce(PolicyGradient):
    """Policy gradient: scores times advantages."""

    num_groups: int = 8
    """Groups of training runs on each task variant that share all but the noise of actions."""
    group_size: int = 4
    """Training runs of a group."""
    baseline: ReturnBaseline = "antithetic"
    """What is subtracted from returns: the other antithetic pairs' mean, the other runs' mean, or
    the critic's value."""

    name: ClassVar[str] = "reinforce"

    @property
    def num_runs(self) -> int:
        """Runs of all groups."""
        return self.num_groups * self.group_size

    @property
    def population(self) -> int:
        """Groups."""
        return self.num_groups

    def with_runs(self, num_runs: int) -> Self:
        """The same with as many groups as have so many runs."""
        return replace(self, num_groups=num_runs // self.group_size)

    def build(self, given: Ingredients) -> Learner:
        """Descent of the policy gradient; the critic is trained along."""
        policy = self.policy(given)
        environments = self.environments(given, policy)
        estimators = {
            name: reinforce(
                environment,
                policy.policy.actor,
                policy.policy.head,
                num_groups=self.num_groups,
                group_size=self.group_size,
                baseline=self.baseline,
                discount=self.discount,
                entropy_weight=self.entropy_weight,
                mesh=given.mesh,
            )
            for name, environment in environments.items()
        }
        learner = gradient_learner(
            given.averaged(estimators),
            self.meta_optimizer.build(given.steps),
            ema_decay=given.ema_decay,
        )
        return with_critic(learner, policy.policy.head, environments[given.tasks[0].name])


@dataclass(frozen=True)
class PPO(PolicyGradient):
    """Proximal policy optimization: clipped steps."""

    num_pairs: int = 16
    """Antithetic pairs of training runs on each task variant."""
    gae_lambda: float = 1.0
    """Parameter λ of the generalized advantages; 1 takes whole returns."""
    epochs: int = 4
    """Passes over each window."""
    minibatches: int = 4
    """Minibatches of each pass."""
    clip_ratio: float = 0.2
    """Distance from 1 at which the ratio of likelihoods is clipped."""

    name: ClassVar[str] = "ppo"

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

    def build(self, given: Ingredients) -> Learner:
        """The learner, whose meta-optimizer takes a step for each minibatch."""
        policy = self.policy(given)
        return ppo_learner(
            self.environments(given, policy),
            policy.policy.actor,
            policy.policy.head,
            self.meta_optimizer.build(given.steps, max(1, self.epochs * self.minibatches)),
            num_pairs=self.num_pairs,
            discount=self.discount,
            gae_lambda=self.gae_lambda,
            epochs=self.epochs,
            minibatches=self.minibatches,
            clip_ratio=self.clip_ratio,
            entropy_weight=self.entropy_weight,
            ema_decay=given.ema_decay,
            weights=given.task_weights,
            report_groups=given.report_groups,
            mesh=given.mesh,
        )


ESTIMATORS = (
    *(FullES, TruncatedES, PES, NRES, ESSingle),
    *(FullGrad, TruncatedGrad, VarianceWeighted),
)
STRATEGIES = (CMA, SepCMA, LMMA, SNES, OpenES, PGPE, SimpleGA)
POLICY_GRADIENTS = (Reinforce, PPO)
METHODS: Mapping[str, type[Method]] = {
    method.name: method for method in (*ESTIMATORS, *STRATEGIES, *POLICY_GRADIENTS)
}
"""Every way to meta-train, by the word that chooses it."""


def alike(method: type[Method], other: Method) -> Method:
    """A method with the options that it shares with another one, and a population of its size."""
    if isinstance(other, method):
        return other
    names = {option.name for option in fields(method)}
    shared = {o.name: getattr(other, o.name) for o in fields(other) if o.name in names}
    return method(**shared).with_runs(other.num_runs)
