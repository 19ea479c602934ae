"""Learners of policies, which go by what actions earn."""

from collections.abc import Sequence
from dataclasses import replace

from jax.sharding import Mesh

from l2o.cli.common import OF_COSTS, check_unused, meta_optimizer, shares_of
from l2o.cli.population import group_size, num_members
from l2o.cli.settings import MetaTraining
from l2o.estimators.estimator import mean_of
from l2o.freeze import Merge
from l2o.learned_optimizer import LearnedOptimizer
from l2o.learner import Learner, gradient_learner
from l2o.policies.policy import PolicyOptimizer
from l2o.registry import POLICIES
from l2o.rl.environment import training_environment
from l2o.rl.ppo import ppo_learner, with_critic
from l2o.rl.reinforce import reinforce
from l2o.rl.reward import Reward
from l2o.task import TaskFamily


def policy_learner(
    settings: MetaTraining,
    lopt: LearnedOptimizer,
    families: Sequence[TaskFamily],
    merge: Merge,
    mesh: Mesh,
) -> Learner:
    """What meta-trains a policy by what its actions earn."""
    if not isinstance(lopt, PolicyOptimizer):
        raise ValueError(
            f"`optimizer` must be a policy for {settings.estimator}; got {lopt.name}. "
            f"Try {', '.join(POLICIES)}."
        )
    check_fits(settings)
    reward = Reward(
        names=settings.reward,
        weights=settings.reward_weights,
        on=settings.reward_on,
        batches=settings.reward_batches,
        penalty=settings.penalty,
    )
    tasks = [task for family in families for task in family.train]
    environments = {
        task.name: training_environment(
            task,
            lopt.policy,
            horizon=(settings.horizon[0], settings.horizon[-1]),
            window=settings.window,
            reward=reward,
            credit=settings.credit,
            privileged=tuple(float(task is other) for other in tasks),
        )
        for task in tasks
    }
    policy = lopt.policy
    actor = replace(
        policy.actor,
        apply=lambda trained, seen, carry: policy.actor.apply(merge(trained), seen, carry),
    )
    weights, together = shares_of(settings, families)
    if settings.estimator == "ppo":
        return ppo_learner(
            environments,
            actor,
            policy.head,
            meta_optimizer(settings, updates=max(1, settings.epochs * settings.minibatches)),
            num_pairs=settings.num_pairs,
            discount=settings.discount,
            gae_lambda=settings.trace,
            epochs=settings.epochs,
            minibatches=settings.minibatches,
            clip_ratio=settings.clip_ratio,
            entropy_weight=settings.entropy_weight,
            ema_decay=settings.averaging,
            weights=weights,
            report_groups=together,
            mesh=mesh,
        )
    estimators = {
        name: reinforce(
            environment,
            actor,
            policy.head,
            num_groups=num_members(settings),
            group_size=group_size(settings),
            baseline=settings.baseline,
            discount=settings.discount,
            entropy_weight=settings.entropy_weight,
            mesh=mesh,
        )
        for name, environment in environments.items()
    }
    return with_critic(
        gradient_learner(
            mean_of(estimators, weights=weights, families=together),
            meta_optimizer(settings),
            averaging=settings.averaging,
        ),
        policy.head,
        environments[tasks[0].name],
    )


def check_fits(settings: MetaTraining) -> None:
    """Raises a `ValueError` if a setting belongs to another way to meta-train."""
    check_unused(settings, OF_COSTS, "estimators that minimise a cost")
    check_unused(settings, ("shaping", "final_std"), "perturbations of theta")
    if settings.estimator == "reinforce":
        check_unused(settings, ("trace", "epochs", "minibatches", "clip_ratio"), "ppo")
    else:
        check_unused(settings, ("baseline",), "reinforce")
