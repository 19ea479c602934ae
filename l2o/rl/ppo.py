"""PPO: several passes over a window of decisions, while theta stays near what drew them.

For the ratio ρ = π(a | o) / π_old(a | o) of each agent and the advantage A of the decision, it
ascends min(ρ A, clip(ρ, 1 - ε, 1 + ε) A) (Schulman et al. 2017). Advantages are generalized
(λ = 0.95), standardized in each minibatch; the critic's value is clipped around what it was; a
minibatch is some of the groups with their whole windows, so recurrent actors keep their order.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from l2o.estimators.estimator import checked_weights, key_of, weighted_mean
from l2o.learned_optimizer import Theta
from l2o.learner import Learner, MetaState, check_ema_decay, update_ema
from l2o.policies.heads import Head
from l2o.policies.policy import Actor
from l2o.rl.environment import Environment
from l2o.rl.gae import standardized
from l2o.rl.reinforce import (
    Credit,
    check_discount,
    check_entropy_weight,
    credit_of,
    masked_mean,
)
from l2o.rl.rollout import (
    ActorCritic,
    Rollout,
    collector,
    first_actor_critic,
    likelihood,
    value_of,
)
from l2o.task import Data, Key


@dataclass(frozen=True)
class PPOSettings:
    """How PPO learns from a window; the defaults are the usual ones.

    Attributes:
        discount: γ, of a decision.
        trace: λ of the generalized advantages.
        epochs: passes over a window.
        minibatches: of each pass, over groups.
        clip_ratio: ε of the ratios; infinite for none.
        value_clip: how far the critic may move from what it said; infinite for none.
        value_weight: of the critic's squared error, halved.
        entropy_weight: of the entropy of actions, which is rewarded.
        standardize: give the advantages of a minibatch mean 0 and standard deviation 1.
    """

    discount: float = 1.0
    trace: float = 0.95
    epochs: int = 4
    minibatches: int = 4
    clip_ratio: float = 0.2
    value_clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.0
    standardize: bool = True

    @property
    def updates(self) -> int:
        """Of the meta-optimizer, in one outer step."""
        return self.epochs * self.minibatches


def check_ppo(settings: PPOSettings, num_groups: int) -> None:
    """Raises a `ValueError` that says what to type for a setting out of its range."""
    check_discount(settings.discount)
    check_entropy_weight(settings.entropy_weight)
    if not 0 <= settings.trace <= 1:
        raise ValueError(f"`trace` must be in [0, 1]; got {settings.trace}. Try trace=0.95.")
    if settings.epochs < 1:
        raise ValueError(f"`epochs` must be at least 1; got {settings.epochs}. Try epochs=4.")
    if settings.minibatches < 1 or num_groups % settings.minibatches:
        raise ValueError(
            f"`minibatches` must divide the {num_groups} groups; got {settings.minibatches}. "
            f"Try minibatches={math.gcd(num_groups, 4)}."
        )
    for name in ("clip_ratio", "value_clip"):
        if not getattr(settings, name) > 0:
            raise ValueError(
                f"`{name}` must be positive; got {getattr(settings, name)}. Try {name}=0.2."
            )


def minibatch_orders(key: Key, settings: PPOSettings, num_groups: int) -> jax.Array:
    """The groups of each minibatch, shape (updates, groups); every pass in an order of its own."""
    keys = jax.random.split(key, settings.epochs)
    orders = jax.vmap(lambda k: jax.random.permutation(k, num_groups))(keys)
    return orders.reshape(settings.updates, -1)


def ppo_cost(
    theta: ActorCritic,
    actor: Actor,
    head: Head,
    rollout: Rollout,
    credit: Credit,
    settings: PPOSettings,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What PPO descends on a minibatch, and how far theta has gone from what drew it."""
    mask, advantages = credit.mask, credit.advantages
    if settings.standardize:
        advantages = standardized(advantages, mask)
    log_prob, entropy = likelihood(theta, actor, head, rollout)
    log_ratio = log_prob - rollout.transitions.log_prob
    ratio = jnp.exp(jnp.clip(log_ratio, -20.0, 20.0))
    bounded = jnp.clip(ratio, 1.0 - settings.clip_ratio, 1.0 + settings.clip_ratio)
    gain = jnp.minimum(ratio * advantages, bounded * advantages)
    values = value_of(theta.critic, rollout.transitions.observation)
    near = credit.values + jnp.clip(
        values - credit.values, -settings.value_clip, settings.value_clip
    )
    error = jnp.maximum(jnp.square(values - credit.targets), jnp.square(near - credit.targets))
    randomness = masked_mean(entropy, mask)
    cost = (
        -masked_mean(gain, mask)
        + settings.value_weight * masked_mean(0.5 * error, mask)
        - settings.entropy_weight * randomness
    )
    is_clipped = (jnp.abs(ratio - 1.0) > settings.clip_ratio).astype(jnp.float32)
    return cost, {
        "entropy": randomness,
        "critic_error": masked_mean(0.5 * jnp.square(values - credit.targets), mask),
        "divergence": masked_mean(ratio - 1.0 - log_ratio, mask),
        "clipped": masked_mean(is_clipped, mask),
    }


def ppo_learner(
    environments: Mapping[str, Environment],
    actor: Actor,
    head: Head,
    optimizer: optax.GradientTransformation,
    *,
    num_pairs: int,
    settings: PPOSettings = PPOSettings(),
    ema_decay: float = 0.0,
    weights: Mapping[str, float] | None = None,
    report_groups: Mapping[str, Sequence[str]] | None = None,
    mesh: Mesh | None = None,
) -> Learner:
    """Meta-trains a policy by PPO; see `with_critic` for what it starts from and returns.

    Runs come in pairs that share everything and act with opposite noise. Metrics are those of
    `l2o.rl.rollout.Collector`, averaged over environments and under `name/metric`, and of
    the last pass: `entropy`, `critic_error`, `divergence` from the policy that acted, and
    `clipped`, the fraction of ratios beyond the bounds.

    Args:
        environments: by name, from which their random streams derive.
        actor: what is trained.
        head: how its actions are drawn.
        optimizer: takes `settings.updates` steps in each outer step.
        num_pairs: pairs of runs in each environment.
        settings: of PPO.
        ema_decay: see `gradient_learner`.
        weights: of the environments; equal if not given.
        report_groups: names to report together, too, under `family/metric`.
        mesh: devices to spread the pairs over.

    Raises:
        ValueError: for an argument outside its range.
    """
    check_ema_decay(ema_decay)
    check_ppo(settings, num_pairs)
    weights = checked_weights(tuple(environments), weights)
    populations = {
        name: collector(
            environment,
            actor,
            head,
            num_groups=num_pairs,
            group_size=2,
            antithetic=True,
            mesh=mesh,
            name="num_pairs",
        )
        for name, environment in environments.items()
    }
    groups = {
        "": list(environments),
        **{f"{n}/": list(m) for n, m in (report_groups or {}).items()},
    }

    def init(key: Key, theta: ActorCritic) -> MetaState:
        return MetaState(
            theta=theta,
            average=theta,
            opt_state=optimizer.init(theta),
            estimator_state={n: p.init(key_of(key, n)) for n, p in populations.items()},
            step=jnp.int32(0),
        )

    def learn(key: Key, theta: ActorCritic, opt_state, rollouts: dict[str, Rollout]):
        credits = {
            name: credit_of(theta, rollout, discount=settings.discount, trace=settings.trace)
            for name, rollout in rollouts.items()
        }

        def cost(theta: ActorCritic, chosen: jax.Array):
            costs, learned = {}, {}
            for name in rollouts:
                rollout, credit = jax.tree.map(lambda x: x[chosen], (rollouts[name], credits[name]))
                costs[name], learned[name] = ppo_cost(theta, actor, head, rollout, credit, settings)
            means = {
                k: weighted_mean({n: learned[n][k] for n in learned}, weights)
                for k in next(iter(learned.values()))
            }
            return weighted_mean(costs, weights), means

        def minibatch(carry, chosen: jax.Array):
            theta, opt_state = carry
            gradient, learned = jax.grad(cost, has_aux=True)(theta, chosen)
            updates, opt_state = optimizer.update(gradient, opt_state, theta)
            learned["meta_gradient_norm"] = optax.tree.norm(gradient)
            return (cast(ActorCritic, optax.apply_updates(theta, updates)), opt_state), learned

        chosen = minibatch_orders(key, settings, num_pairs)
        (theta, opt_state), learned = jax.lax.scan(minibatch, (theta, opt_state), chosen)
        last = {k: jnp.mean(v[-settings.minibatches :]) for k, v in learned.items()}
        return theta, opt_state, last

    def step(key: Key, state: MetaState, data: Data) -> tuple[MetaState, dict[str, jax.Array]]:
        k_act, k_learn = jax.random.split(key)
        after, rollouts, found = {}, {}, {}
        for name, population in populations.items():
            after[name], rollouts[name], found[name] = population.collect(
                key_of(k_act, name), state.theta, state.estimator_state[name], data[name]
            )
        theta, opt_state, learned = learn(k_learn, state.theta, state.opt_state, rollouts)
        metrics = {f"{name}/{k}": v for name in found for k, v in found[name].items()}
        for prefix, names in groups.items():
            for k in found[names[0]]:
                values = {n: found[n][k] for n in names}
                shares = {n: jnp.where(jnp.isnan(v), 0.0, weights[n]) for n, v in values.items()}
                metrics[prefix + k] = weighted_mean(values, shares)
        average = update_ema(ema_decay, state.step, state.average, theta)
        return MetaState(theta, average, opt_state, after, state.step + 1), metrics | learned

    return with_critic(
        Learner(
            init=init,
            step=step,
            theta=lambda state: state.average,
            steps=sum(population.steps for population in populations.values()),
            data={name: environment.data for name, environment in environments.items()},
        ),
        head,
        next(iter(environments.values())),
    )


def with_critic(learner: Learner, head: Head, environment: Environment) -> Learner:
    """A learner of an `ActorCritic` that starts from an actor, and gives one back."""

    def init(key: Key, theta: Theta) -> MetaState:
        k_critic, k_population = jax.random.split(key)
        return learner.init(k_population, first_actor_critic(k_critic, theta, head, environment))

    return dataclasses.replace(learner, init=init, theta=lambda state: learner.theta(state).actor)
