"""Policy gradients: the optimizer as an agent, the training run as its environment."""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from l2o import registry
from l2o.cli.arguments import Flat
from l2o.cli.methods.method import (
    ADAMW,
    CombinerName,
    Ingredients,
    MetaOptimizer,
    Method,
    WeightingName,
)
from l2o.learner import Learner, gradient_learner
from l2o.policies.policy import PolicyOptimizer
from l2o.rl.environment import CreditName, Environment, training_environment
from l2o.rl.gae import ReturnBaseline
from l2o.rl.ppo import ppo_learner, with_critic
from l2o.rl.reinforce import reinforce
from l2o.rl.reward import Reward


@dataclass(frozen=True)
class PolicyGradient(Method):
    """What policy gradients have in common: the reward, and how it is learned from."""

    discount: float = 1.0
    """Discount of the rewards of later actions; below 1, gains do not add up to that of the run."""
    entropy_weight: float = 0.0
    """Weight of the entropy of actions, which is rewarded."""
    credit: CreditName = "team"
    """Whether all agents get the reward, or each the difference it made, by more inner steps."""
    reward: Reward = field(default_factory=Reward)
    meta_optimizer: Flat[MetaOptimizer] = ADAMW

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
        """The training runs of each task, as a policy acts in them; the critic is told which.

        Raises:
            ValueError: if runs are to grow, which those of policy gradients do not.
        """
        if given.curriculum:
            raise ValueError(
                f"`curriculum` must be 0 for {self.name}; got {given.curriculum}. Drop it, or try "
                "nres."
            )
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
    combine: CombinerName = "mean"
    """What becomes of the gradients of several tasks: their mean, or see `l2o list`."""
    weighting: WeightingName = "fixed"
    """Whether the weights of several tasks move, to the worst or to those on which most is learned.
    """

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
            given.averaged(estimators, self.combine, self.weighting),
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


POLICY_GRADIENTS = (Reinforce, PPO)
