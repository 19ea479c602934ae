"""The `gymnasium.Env` behind `l2o.rl.gymnax_env.gymnasium_env`."""

from typing import Any

import gymnasium
import jax
import numpy as np

from l2o.rl.gymnax_env import TrainingEnv, refuse_forks
from l2o.rng import check_seed


class GymnasiumEnv(gymnasium.Env):
    """One episode at a time; every step is one compiled program."""

    metadata = {"render_modes": []}  # noqa: RUF012, as gymnasium has it

    def __init__(self, env: TrainingEnv, seed: int) -> None:
        refuse_forks()
        self._reset = jax.jit(env.reset)
        self._step = jax.jit(env.step_env)
        self._observe = jax.jit(env.observe)
        self._params = env.default_params
        check_seed(seed)
        self._key = jax.random.key(seed)
        self._state: Any = None
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, env.observation_shape, np.float32
        )
        if env.num_choices is None:
            self.action_space = gymnasium.spaces.Box(-1.0, 1.0, env.action_shape, np.float32)
        elif env.num_agents == 1:
            self.action_space = gymnasium.spaces.Discrete(env.num_choices)
        else:
            self.action_space = gymnasium.spaces.MultiDiscrete([env.num_choices] * env.num_agents)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode, the same one for the same seed.

        Raises:
            ValueError: Unless the seed is one of the 2³² that JAX tells apart.
        """
        refuse_forks()
        super().reset(seed=seed, options=options)
        if seed is not None:
            check_seed(seed)
            self._key = jax.random.key(seed)
        self._key, k_reset = jax.random.split(self._key)
        observation, self._state = self._reset(k_reset, self._params)
        return np.asarray(observation), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action, and train until the next."""
        refuse_forks()
        if self._state is None:
            raise gymnasium.error.ResetNeeded("Call `reset` before the first `step`.")
        self._key, k_step = jax.random.split(self._key)
        self._state, reward, terminated, info = self._step(
            k_step, self._state, np.asarray(action, np.float32), self._params
        )
        rewards = {name: float(value) for name, value in info.items()}
        observation = np.asarray(self._observe(self._state))
        return observation, float(reward), bool(terminated), False, rewards
