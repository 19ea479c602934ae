"""Training runs as an environment for other people's agents, in two dialects.

`TrainingEnv` is functional, in the manner of gymnax 1.0: pure `reset` and `step` that can be
vmapped and scanned, parameters as an argument, episodes that start anew by themselves.
`gymnasium_env` wraps one as a `gymnasium.Env`, one episode at a time, for agents of any framework.
Both pay and show what `l2o.rl.environment` does; nothing of ours is needed to learn in them.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.policies.policy import PolicyOptimizer
from l2o.rl.environment import EnvState, training_environment
from l2o.rl.reward import Reward
from l2o.task import Data, Key, Task

if TYPE_CHECKING:
    import gymnasium


class EnvParams(NamedTuple):
    """What an episode depends on besides its key.

    Attributes:
        data: of the task.
    """

    data: Data


class TrainingEnv:
    """Training runs in the functional manner of gymnax.

    An observation is what the agents see, shape (features,) for one agent, otherwise (agents,
    features). An action is an index for a chooser; otherwise what the knobs are turned by, between
    -1 and 1, shape (actions,) or (agents, actions). Beyond its range it counts as the nearest end.
    An episode is over at the horizon, which the observation shows coming, or by divergence: both
    are terminations, and there is no truncation.

    Args:
        task: what is trained.
        optimizer: a policy, for its knobs and its interval; what it would do does not matter.
        horizon: inner steps of a run; a pair (shortest, longest) draws it log-uniformly for each
            run. Multiples of the policy's interval.
        reward: what is paid.

    Raises:
        ValueError: as `training_environment`.
    """

    def __init__(
        self,
        task: Task,
        optimizer: PolicyOptimizer,
        *,
        horizon: int | tuple[int, int],
        reward: Reward = Reward(),  # noqa: B008, frozen
    ) -> None:
        policy = optimizer.policy
        self._environment = training_environment(
            task, policy, horizon=horizon, window=policy.interval, reward=reward
        )
        seen = jax.eval_shape(
            lambda key: self._environment.observe(self._environment.start(key)).agents,
            jax.random.key(0),
        )
        raw = jax.eval_shape(lambda: policy.head.mode(jnp.zeros((1, policy.head.num_outputs))))
        self.num_agents: int = seen.shape[0]
        self.num_choices: int | None = policy.head.num_choices
        self.observation_shape = seen.shape[1:] if self.num_agents == 1 else seen.shape
        each = raw.shape[1:] if self.num_choices is None else ()
        self.action_shape = each if self.num_agents == 1 else (self.num_agents, *each)
        self.name = f"{policy.name}_of_{task.name}"
        self.default_params = EnvParams(self._environment.data)

    def reset(self, key: Key, params: EnvParams | None = None) -> tuple[jax.Array, EnvState]:
        """Starts an episode: `(observation, state)`."""
        data = (params or self.default_params).data
        k_start, k_enter = jax.random.split(key)
        state = self._environment.enter(k_enter, self._environment.start(k_start), data)
        return self.observe(state), state

    def step(
        self,
        key: Key,
        state: EnvState,
        action: jax.Array,
        params: EnvParams | None = None,
    ) -> tuple[jax.Array, EnvState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """One decision, and the interval of training that follows it; a run that ends starts anew.

        Returns:
            `(observation, state, reward, terminated, truncated, info)`. `info` has each reward by
            name, and `final_observation`, from before the new start.
        """
        k_step, k_reset = jax.random.split(key)
        after, reward, terminated, info = self.step_env(k_step, state, action, params)
        observation, anew = self.reset(k_reset, params)
        select = lambda new, old: jnp.where(terminated, new, old)
        info["final_observation"] = self.observe(after)
        return (
            select(observation, info["final_observation"]),
            jax.tree.map(select, anew, after),
            reward,
            terminated,
            jnp.bool_(False),
            info,
        )

    def step_env(
        self, key: Key, state: EnvState, action: jax.Array, params: EnvParams | None = None
    ) -> tuple[EnvState, jax.Array, jax.Array, dict[str, Any]]:
        """The same without starting anew: `(state, reward, terminated, info)`."""
        data = (params or self.default_params).data
        turned = jnp.asarray(action, jnp.float32).reshape(self.num_agents, -1)
        ends = (-1.0, 1.0) if self.num_choices is None else (0.0, self.num_choices - 1.0)
        turned = jnp.clip(turned, *ends)
        after, outcome = self._environment.step(key, state, turned, data)
        info = dict(zip(self._environment.names, outcome.rewards, strict=True))
        return after, outcome.reward, outcome.done, info

    def observe(self, state: EnvState) -> jax.Array:
        """What the agents see, finite even where a run has diverged."""
        agents = self._environment.observe(state).agents
        return jnp.nan_to_num(agents.reshape(self.observation_shape))


def gymnasium_env(env: TrainingEnv, *, seed: int = 0) -> "gymnasium.Env":
    """A `gymnasium.Env` of the same episodes.

    Args:
        env: what to wrap.
        seed: of the first episode, if `reset` is given none.

    Raises:
        ValueError: if gymnasium is not installed.
    """
    try:
        from l2o.rl.gymnasium_env import GymnasiumEnv
    except ImportError as error:
        raise ValueError(
            "`gymnasium_env` needs the package gymnasium; got an environment without it. "
            "Try pip install 'l2o[rl]'."
        ) from error
    return GymnasiumEnv(env, seed)
