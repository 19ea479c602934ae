"""A training run as the environment of agents: the seam between tasks and policy gradients.

| reinforcement learning | here |
|---|---|
| episode | one training run, to its horizon |
| state | `TrainingState`: parameters, optimizer, where its knobs stand |
| observation | `l2o.policies.observation`, one row an agent |
| action | one row an agent, by which its knobs turn; held for `interval` inner steps |
| reward | `l2o.rl.reward`, for the whole interval |
| end | the horizon, or divergence; the end of a window is none, and is bootstrapped |
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from l2o.batches import batch_fraction, check_shrinks, training_batch
from l2o.optimizers.per_tensor import as_float32
from l2o.policies.policy import Policy
from l2o.problem import check_horizon, start_of_drawn_run
from l2o.rl.reward import Reward, check_reward, measure, paid
from l2o.task import Data, Instance, Key, Task, validate_task

EnvState = Any

CreditName = Literal["team", "difference"]


class Observation(NamedTuple):
    """What is seen before a decision.

    Attributes:
        agents: shape (agents, features), what each agent acts upon.
        critic: shape (critic features,), what the value is estimated from besides; it may hold
            what no agent can see, as it is used in training only.
    """

    agents: jax.Array
    critic: jax.Array


class Outcome(NamedTuple):
    """What a decision led to; scalars but for `credit` and `rewards`.

    Attributes:
        reward: what is paid for it.
        credit: what each agent learns from, shape (agents,).
        rewards: the same by name, before weights and penalty, shape (names,).
        done: whether the episode ends here, at its horizon or by divergence.
        finite: fraction of its inner steps with a finite training loss.
    """

    reward: jax.Array
    credit: jax.Array
    rewards: jax.Array
    done: jax.Array
    finite: jax.Array


@dataclass(frozen=True, eq=False)
class Environment:
    """What policy gradients see: episodes of decisions, and nothing of tasks.

    Attributes:
        init: `(key) -> state`, an episode cut to a random length, so that episodes end staggered.
        start: `(key) -> state`, an episode at its first decision.
        enter: `(key, state, data) -> state`, called before the first decision of every window:
            what an episode that has just started needs the data for; others stay as they are.
        observe: `(state) -> Observation`.
        step: `(key, state, action, data) -> (state, Outcome)` for an action of shape (agents,
            actions); it does not start anew by itself.
        decisions: of one window.
        inner_steps: of one decision, all that were trained for it.
        names: of the rewards.
        data: what `enter` and `step` take as `data`, an argument of the compiled program.
    """

    init: Callable[[Key], EnvState]
    start: Callable[[Key], EnvState]
    enter: Callable[[Key, EnvState, Data], EnvState]
    observe: Callable[[EnvState], Observation]
    step: Callable[[Key, EnvState, jax.Array, Data], tuple[EnvState, Outcome]]
    decisions: int
    inner_steps: int
    names: tuple[str, ...]
    data: Data = ()


class Without(NamedTuple):
    """For each agent, the same run if that agent had never turned its knobs; an agent axis first.

    Attributes:
        params: its parameters.
        knobs: see `l2o.policies.policy.Knobs`.
        potentials: what was measured last.
        is_over: whether it has diverged, after which it earns nothing.
    """

    params: optax.Params
    knobs: Any
    potentials: jax.Array
    is_over: jax.Array


class TrainingState(NamedTuple):
    """A training run between two decisions.

    Attributes:
        instance: the sampled problem.
        params: its parameters.
        knobs: see `l2o.policies.policy.Knobs`.
        step: inner steps taken since the start of the run, int32 scalar.
        horizon: inner steps of the whole run, int32 scalar.
        potentials: what was measured last, shape (rewards,).
        first_loss: on fresh batches at the start of the run.
        loss: the same when it was measured last.
        without: for credit by difference, else ().
    """

    instance: Instance
    params: optax.Params
    knobs: Any
    step: jax.Array
    horizon: jax.Array
    potentials: jax.Array
    first_loss: jax.Array
    loss: jax.Array
    without: Without | tuple[()] = ()


def training_environment(
    task: Task,
    policy: Policy,
    *,
    horizon: int | tuple[int, int],
    window: int,
    reward: Reward = Reward(),  # noqa: B008, frozen
    credit: CreditName = "team",
    privileged: tuple[float, ...] = (),
) -> Environment:
    """Training runs of `task`, with the knobs of `policy` as what can be done.

    The critic sees, besides what agents see: the logarithm of the horizon, how much of it is left,
    the loss on fresh batches and how far it has come.

    Args:
        task: what is trained.
        policy: whose knobs are turned, and how often.
        horizon: inner steps of a run; a pair (shortest, longest) draws it log-uniformly for each
            run. Multiples of `window`.
        window: inner steps of one window, a multiple of the policy's interval.
        reward: what is paid.
        credit: "team" gives all agents the whole reward; "difference" gives each what it changed
            (Wolpert and Tumer 2002): the reward less that of a second run on the same batches, in
            which this agent alone has left its knobs where they began, and the others have done
            what they did. All pay the penalty. Each agent's run is trained along from the first
            step to the last, which `inner_steps` counts.
        privileged: numbers that tell the critic which task this is.

    Raises:
        ValueError: if the task is malformed or cannot pay the reward, `horizon`, `window` and the
            policy's interval do not fit, or the credit or the reward do not suit the policy.
    """
    validate_task(task)
    check_reward(reward, task)
    interval, knobs = policy.interval, policy.knobs
    shortest, longest = (horizon, horizon) if isinstance(horizon, int) else horizon
    check_horizon(shortest, longest, window, allow_one=True)
    if window % interval:
        raise ValueError(
            f"`window` must be a multiple of the {interval} steps between two decisions of "
            f"{policy.name}; got {window}. Try window={-(-window // interval) * interval}."
        )
    if credit not in get_args(CreditName):
        raise ValueError(f"`credit` must be team or difference; got {credit}. Try credit=team.")
    if credit == "difference" and policy.head.num_choices is not None:
        raise ValueError(
            f"`credit` must be team for {policy.name}, whose agents cannot do nothing; got "
            f"{credit}. Drop it."
        )
    task_id = jnp.asarray(privileged, jnp.float32)

    def start_of(key: Key, num_steps: jax.Array) -> TrainingState:
        k_instance, k_params = jax.random.split(key)
        instance = task.sample(k_instance)
        params = task.init(k_params, instance)
        state = TrainingState(
            instance=instance,
            params=params,
            knobs=knobs.init(as_float32(params), num_steps),
            step=jnp.int32(0),
            horizon=num_steps,
            potentials=jnp.zeros(len(reward.names)),
            first_loss=jnp.float32(0.0),
            loss=jnp.float32(0.0),
        )
        return state if credit == "team" else state._replace(without=without_each(state))

    def without_each(state: TrainingState) -> Without:
        """At the start all are alike."""
        num_agents = knobs.observe(state.knobs).shape[0]
        same = Without(state.params, state.knobs, state.potentials, jnp.bool_(False))
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_agents, *jnp.shape(x))), same)

    start = start_of_drawn_run(start_of, shortest, longest, window)

    def enter(key: Key, state: TrainingState, data: Data) -> TrainingState:
        loss, potentials = measure(reward, task, key, state.params, state.instance, data)
        measured = state._replace(potentials=potentials, first_loss=loss, loss=loss)
        if isinstance(state.without, Without):
            of_each = jnp.broadcast_to(potentials, state.without.potentials.shape)
            measured = measured._replace(without=state.without._replace(potentials=of_each))
        has_begun = state.step > 0
        return jax.tree.map(lambda old, new: jnp.where(has_begun, old, new), state, measured)

    def observe(state: TrainingState) -> Observation:
        log_loss = jnp.log(jnp.clip(state.loss, 1e-6, 1e6))
        first = jnp.log(jnp.clip(state.first_loss, 1e-6, 1e6))
        horizon = state.horizon.astype(jnp.float32)
        of_run = [
            0.25 * jnp.log10(horizon),
            1.0 - state.step / horizon,
            0.3 * log_loss,
            0.3 * (log_loss - first),
        ]
        critic = jnp.concatenate([jnp.stack(of_run), task_id])
        return Observation(knobs.observe(state.knobs), jnp.nan_to_num(critic))

    def step(
        key: Key, state: TrainingState, action: jax.Array, data: Data
    ) -> tuple[TrainingState, Outcome]:
        after, outcome = decide(key, state, action, data)
        num_agents = action.shape[0]
        if not isinstance(state.without, Without):
            return after, outcome._replace(credit=jnp.full(num_agents, outcome.reward))
        of_others = jnp.where(jnp.eye(num_agents, dtype=bool)[..., None], 0.0, action)

        def decide_without(old: Without, of_others: jax.Array) -> tuple[Without, jax.Array]:
            otherwise = state._replace(
                params=old.params, knobs=old.knobs, potentials=old.potentials, without=()
            )
            there, outcome = decide(key, otherwise, of_others, data)
            is_over = old.is_over | outcome.done
            new = Without(there.params, there.knobs, there.potentials, is_over)
            earned = jnp.sum(reward.weight_of_each * outcome.rewards)
            return new, jnp.where(old.is_over, 0.0, earned)

        without, earned = jax.vmap(decide_without)(state.without, of_others)
        return after._replace(without=without), outcome._replace(credit=outcome.reward - earned)

    def decide(
        key: Key, state: TrainingState, action: jax.Array, data: Data
    ) -> tuple[TrainingState, Outcome]:
        """The interval that follows an action; what it paid is not shared out yet."""
        k_batches, k_measure = jax.random.split(key)
        turned = knobs.turn(state.knobs, action)
        params, turned, losses, used = train(k_batches, state, turned, data)
        loss, potentials = measure(reward, task, k_measure, params, state.instance, data)
        count = state.step + interval
        limit = jnp.maximum(task.loss_cap, 2.0 * state.first_loss)
        diverged = ~jnp.isfinite(loss) | (loss > limit)
        steps_left = (state.horizon - count).astype(jnp.float32)
        rewards = paid(
            reward,
            task,
            state.potentials,
            potentials,
            losses,
            used,
            steps_left,
            state.horizon,
            diverged,
        )
        total = jnp.sum(reward.weight_of_each * rewards) - jnp.where(diverged, reward.penalty, 0.0)
        after = state._replace(
            params=params, knobs=turned, step=count, potentials=potentials, loss=loss
        )
        outcome = Outcome(
            reward=total,
            credit=jnp.zeros(0),
            rewards=rewards,
            done=diverged | (count >= state.horizon),
            finite=jnp.mean(jnp.isfinite(losses).astype(jnp.float32)),
        )
        return after, outcome

    def train(key: Key, state: TrainingState, turned: Any, data: Data):
        def inner_step(carry, k_batch: Key):
            params, turned, fraction = carry
            batch = training_batch(task, k_batch, state.instance, data, fraction)
            loss, grads = jax.value_and_grad(task.loss)(params, batch, state.instance)
            updates, turned = knobs.update(
                as_float32(grads), turned, as_float32(params), loss.astype(jnp.float32)
            )
            updates = jax.tree.map(lambda u, g: u.astype(g.dtype), updates, grads)
            carry = optax.apply_updates(params, updates), turned, batch_fraction(turned)
            used = jnp.float32(1.0 if fraction is None else fraction)
            return carry, (loss.astype(jnp.float32), used)

        # An optimizer decides at an update, whose batch has been drawn by then.
        carry = state.params, turned, batch_fraction(state.knobs)
        (params, turned, _), (losses, used) = jax.lax.scan(
            inner_step, carry, jax.random.split(key, interval)
        )
        return params, turned, losses, used

    begun = jax.eval_shape(lambda key: start(key, False), jax.random.key(0))
    if batch_fraction(begun.knobs) is not None:
        check_shrinks(task)
    elif "examples" in reward.names:
        raise ValueError(
            f"`reward` can be examples only if {policy.name} chooses the size of batches; got "
            f"{' '.join(reward.names)}. Drop it, or add the knob batch_fraction."
        )
    num_agents = jax.eval_shape(observe, begun).agents.shape[0]
    if credit == "difference" and num_agents == 1:
        raise ValueError(
            f"`credit` must be team for {policy.name}, which has one agent; got {credit}. Drop it."
        )
    repeats = 1 + num_agents if credit == "difference" else 1
    return Environment(
        init=lambda key: start(key, True),
        start=lambda key: start(key, False),
        enter=enter,
        observe=observe,
        step=step,
        decisions=window // interval,
        inner_steps=interval * repeats,
        names=reward.names,
        data=task.data,
    )
