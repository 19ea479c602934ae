"""REINFORCE: the score of each action, times how much better than expected it turned out.

    ∇J = E[ Σ_t ∇ ln π(a_t | o_t) (G_t - b_t) ]                       (Williams 1992)

over windows of a population, as a mean over decisions and agents; G_t is the return to go, with
the value of the last state in place of what lies beyond the window. The critic that gives it is
trained by the same gradient, and does not reach the actor.
"""

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
from l2o.rl.rollout import ActorCritic, Rollout, collector, likelihood, value_of
from l2o.task import Data, Key

BASELINES: tuple[ReturnBaseline, ...] = get_args(ReturnBaseline)


class Credit(NamedTuple):
    """What a rollout taught, of shape (groups, runs, decisions, agents).

    Attributes:
        advantages: of each decision.
        targets: for the critic.
        values: what the critic said.
        mask: which decisions count, (groups, runs, decisions, 1).
    """

    advantages: jax.Array
    targets: jax.Array
    values: jax.Array
    mask: jax.Array


def credit_of(theta: ActorCritic, rollout: Rollout, *, discount: float, trace: float) -> Credit:
    """Generalized advantages of a rollout, and the critic's targets."""
    moves = rollout.transitions
    values = value_of(theta.critic, moves.observation)
    advantages = jax.vmap(
        jax.vmap(lambda *of_run: generalized_advantages(*of_run, discount=discount, trace=trace))
    )(moves.outcome.credit, values, value_of(theta.critic, rollout.last), moves.outcome.done)
    return Credit(advantages, advantages + values, values, moves.mask[..., None])


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
    """Policy gradients of an `ActorCritic`, for `gradient_learner`.

    Args:
        environment: what the population acts in.
        actor: what is trained.
        head: how its actions are drawn.
        num_groups: groups of runs that share all but the noise of their actions.
        group_size: runs of a group; even if `baseline` is antithetic, at least 2 if leave_one_out.
        baseline: what is subtracted from returns; see `subtract_baseline`.
        discount: γ, of a decision.
        entropy_weight: of the entropy of actions, which is rewarded.
        value_weight: of the critic's squared error, halved.
        standardize: give advantages mean 0 and standard deviation 1.
        mesh: devices to spread the groups over.

    Raises:
        ValueError: for an argument outside its range.
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
    population = collector(
        environment,
        actor,
        head,
        num_groups=num_groups,
        group_size=group_size,
        antithetic=baseline == "antithetic",
        mesh=mesh,
        name="num_pairs",
    )

    def init(key: Key, theta: ActorCritic):
        del theta
        return population.init(key)

    def estimate(key: Key, theta: ActorCritic, state, data: Data):
        state, rollout, metrics = population.collect(key, theta, state, data)
        credit = credit_of(theta, rollout, discount=discount, trace=1.0)
        advantages = subtract_baseline(baseline, credit.targets, credit.values, credit.mask)
        if standardize:
            advantages = standardized(advantages, credit.mask)

        gradient, learned = jax.grad(reinforce_cost, has_aux=True)(
            theta,
            actor,
            head,
            rollout,
            credit._replace(advantages=advantages),
            value_weight=value_weight,
            entropy_weight=entropy_weight,
        )
        return gradient, state, metrics | learned

    return Estimator(init=init, estimate=estimate, steps=population.steps, data=environment.data)


def reinforce_cost(
    theta: ActorCritic,
    actor: Actor,
    head: Head,
    rollout: Rollout,
    credit: Credit,
    *,
    value_weight: float,
    entropy_weight: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What REINFORCE descends: its gradient is the policy gradient's negative, and the critic's."""
    log_prob, entropy = likelihood(theta, actor, head, rollout)
    values = value_of(theta.critic, rollout.transitions.observation)
    gain = masked_mean(log_prob * credit.advantages, credit.mask)
    error = masked_mean(0.5 * jnp.square(values - credit.targets), credit.mask)
    randomness = masked_mean(entropy, credit.mask)
    cost = -gain + value_weight * error - entropy_weight * randomness
    return cost, {"entropy": randomness, "critic_error": error}


def masked_mean(values: jax.Array, mask: jax.Array) -> jax.Array:
    """The mean over what counts, or 0 if nothing does."""
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def check_discount(discount: float) -> None:
    """Raises a `ValueError` unless the discount is in [0, 1]."""
    if not 0 <= discount <= 1:
        raise ValueError(f"`discount` must be in [0, 1]; got {discount}. Try discount=1.")


def check_entropy_weight(weight: float) -> None:
    """Raises a `ValueError` unless the weight is finite and not negative."""
    if not 0 <= weight < math.inf:
        raise ValueError(
            f"`entropy_weight` must be finite and not negative; got {weight}. Try entropy_weight=0."
        )
