"""REINFORCE: the score of each action, times its advantage.

    ∇J = E[ Σ_t ∇ ln π(a_t | o_t) (G_t - b_t) ]                       (Williams 1992)

over windows of a population, as a mean over actions and agents; G_t is the return to go, with
the value of the last state in place of what lies beyond the window. The critic that gives it is
trained by the same gradient, and does not reach the actor. Advantages are standardized over the
window unless told otherwise, which the formula does not have: a bias of O(1/n) for n runs.
"""

import functools
import math
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from l2o.estimators.estimator import Estimator
from l2o.policies.heads import Head
from l2o.policies.policy import Actor
from l2o.rl.environment import Environment
from l2o.rl.gae import (
    ReturnBaseline,
    generalized_advantages,
    standardized,
    subtract_baseline,
)
from l2o.rl.rollout import ActorCritic, Rollout, likelihood, rollout_worker, value_of
from l2o.task import Data, Key

BASELINES: tuple[ReturnBaseline, ...] = get_args(ReturnBaseline)


class Advantages(NamedTuple):
    """Advantages of the actions of a rollout, of shape (groups, runs, num_actions, agents).

    Attributes:
        advantages: Advantage of each action.
        targets: Targets for the critic.
        values: Values by the critic.
        mask: Whether an action counts, (groups, runs, num_actions, 1).
    """

    advantages: jax.Array
    targets: jax.Array
    values: jax.Array
    mask: jax.Array


def estimate_advantages(
    theta: ActorCritic, rollout: Rollout, *, discount: float, gae_lambda: float
) -> Advantages:
    """Estimate generalized advantages of a rollout, and the critic's targets."""
    transitions, outcome = rollout.transitions, rollout.transitions.outcome
    values = value_of(theta.critic, transitions.observation)
    last = value_of(theta.critic, rollout.last)
    estimate = functools.partial(generalized_advantages, discount=discount, gae_lambda=gae_lambda)
    advantages = jax.vmap(jax.vmap(estimate))(outcome.credit, values, last, outcome.done)
    return Advantages(advantages, advantages + values, values, transitions.mask[..., None])


def reinforce(
    environment: Environment,
    actor: Actor,
    head: Head,
    *,
    num_groups: int,
    group_size: int = 4,
    baseline: ReturnBaseline = "antithetic",
    discount: float = 1.0,
    entropy_weight: float = 0.0,
    value_weight: float = 0.5,
    standardize: bool = True,
    mesh: Mesh | None = None,
) -> Estimator:
    """Estimate policy gradients of an `ActorCritic`, for `gradient_learner`.

    >>> import l2o
    >>> from l2o.rl.environment import training_environment
    >>> from l2o.tasks.quadratic import rotated_quadratic
    >>> policy = l2o.scheduler(action_interval=5).policy
    >>> environment = training_environment(rotated_quadratic(2), policy, horizon=40, window=20)
    >>> reinforce(environment, policy.actor, policy.head, num_groups=2).steps
    160

    Args:
        environment: Environment of the population.
        actor: Network that is trained.
        head: Distribution from which actions are sampled.
        num_groups: Number of groups of runs that share all but the noise of their actions.
        group_size: Number of runs of a group; even if `baseline` is antithetic, at least 2 if it is
            leave_one_out.
        baseline: Baseline that is subtracted from returns, see `subtract_baseline`.
        discount: Discount γ of the reward of each later action; below 1, gains do not telescope.
        entropy_weight: Weight of the entropy of actions, which is rewarded.
        value_weight: Weight of the critic's loss.
        standardize: Whether to give advantages mean 0 and standard deviation 1 over the window,
            which biases the gradient by O(1/n) for n runs.
        mesh: Devices to spread the groups over.

    Raises:
        ValueError: For an argument outside its range.
    """
    check_discount(discount)
    check_entropy_weight(entropy_weight)
    if baseline not in BASELINES:
        raise ValueError(
            f"`baseline` must be one of {', '.join(BASELINES)}; got {baseline}. Try {BASELINES[0]}."
        )
    if baseline != "value" and (group_size < 2 or (baseline == "antithetic" and group_size % 2)):
        raise ValueError(
            f"`group_size` must be {'even' if baseline == 'antithetic' else 'at least 2'} for "
            f"{baseline}; got {group_size}. Try group_size=4."
        )
    population = rollout_worker(
        environment,
        actor,
        head,
        num_groups=num_groups,
        group_size=group_size,
        antithetic=baseline == "antithetic",
        mesh=mesh,
        name="num_groups",
    )

    def init(key: Key, theta: ActorCritic):
        del theta
        return population.init(key)

    def estimate(key: Key, theta: ActorCritic, state, data: Data):
        state, rollout, metrics = population.collect(key, theta, state, data)
        found = estimate_advantages(theta, rollout, discount=discount, gae_lambda=1.0)
        advantages = subtract_baseline(baseline, found.targets, found.values, found.mask)
        if standardize:
            advantages = standardized(advantages, found.mask)
        gradient, learned = jax.grad(reinforce_loss, has_aux=True)(
            theta,
            actor,
            head,
            rollout,
            found._replace(advantages=advantages),
            value_weight=value_weight,
            entropy_weight=entropy_weight,
        )
        return gradient, state, metrics | learned

    return Estimator(init=init, estimate=estimate, steps=population.steps, data=environment.data)


def reinforce_loss(
    theta: ActorCritic,
    actor: Actor,
    head: Head,
    rollout: Rollout,
    advantages: Advantages,
    *,
    value_weight: float,
    entropy_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute a loss whose gradient is the negative policy gradient, and that of the critic."""
    mask = advantages.mask
    log_prob, entropies = likelihood(theta, actor, head, rollout)
    values = value_of(theta.critic, rollout.transitions.observation)
    policy_objective = masked_mean(log_prob * advantages.advantages, mask)
    value_loss = masked_mean(0.5 * jnp.square(values - advantages.targets), mask)
    entropy = masked_mean(entropies, mask)
    loss = -policy_objective + value_weight * value_loss - entropy_weight * entropy
    return loss, {"entropy": entropy, "value_loss": value_loss}


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """Average over what counts; 0 if nothing does."""
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def check_discount(discount: float) -> None:
    """Raise a `ValueError` unless the discount is in [0, 1]."""
    if not 0 <= discount <= 1:
        raise ValueError(f"`discount` must be in [0, 1]; got {discount}. Try discount=1.")


def check_entropy_weight(weight: float) -> None:
    """Raise a `ValueError` unless the weight is finite and not negative."""
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"`entropy_weight` must be finite and not negative; got {weight}. Try entropy_weight=0."
        )
