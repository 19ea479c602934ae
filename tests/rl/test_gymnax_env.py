"""The environment for other people's agents."""

import sys
import warnings

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from small_policies import with_params
from user_module import bowl_with_splits

from l2o.policies.optimizer_selector import optimizer_selector
from l2o.policies.per_tensor_controller import per_tensor_controller
from l2o.policies.scheduler import scheduler
from l2o.rl.gymnax_env import TrainingEnv, gymnasium_env
from l2o.rl.reward import LOG_FLOOR, Reward
from l2o.tasks.digits import digits
from l2o.tasks.image_mlp import image_mlp

DESIGNS = {
    "scheduler": scheduler(action_interval=5),
    "per_tensor_controller": per_tensor_controller("adam", ["b1"], action_interval=5),
    "optimizer_selector": optimizer_selector(action_interval=5),
}


def make(name: str, **changes) -> TrainingEnv:
    return TrainingEnv(bowl_with_splits(), DESIGNS[name], **{"horizon": 20, **changes})


@pytest.mark.parametrize("name", DESIGNS)
def test_gymnasium_checks_it(name):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render.*|.*infinity.*")
        check_env(gymnasium_env(make(name)))


OF_LOSSES = slice(9, 18)
"""Where the features of the loss are, in what an agent sees."""


@pytest.mark.parametrize(
    "name",
    [
        n if n != "per_tensor_controller" else pytest.param(n, marks=pytest.mark.slow)
        for n in DESIGNS
    ],
)
def test_both_dialects_play_the_same_episode(name):
    env = make(name)
    gym = gymnasium_env(env)
    seen, _ = gym.reset(seed=3)
    assert gym.observation_space.contains(seen)
    key, k_reset = jax.random.split(jax.random.key(3))
    same, state = env.reset(k_reset)
    np.testing.assert_allclose(same, seen, rtol=1e-5)
    gym.action_space.seed(0)
    for number in range(1, 5):
        action = gym.action_space.sample()
        seen, reward, terminated, truncated, info = gym.step(action)
        key, k_step = jax.random.split(key)
        state, expected, done, _ = env.step_env(k_step, state, action)
        np.testing.assert_allclose(reward, expected, rtol=1e-4, atol=1e-5)
        expected = np.asarray(env.observe(state))
        # What they see of losses is differences, of which the last bit moves a thousandth.
        np.testing.assert_allclose(seen[..., OF_LOSSES], expected[..., OF_LOSSES], atol=1e-3)
        others = [np.delete(x, OF_LOSSES, axis=-1) for x in (seen, expected)]
        np.testing.assert_allclose(*others, rtol=1e-4, atol=1e-5)
        assert terminated == done == (number == 4) and not truncated
        assert set(info) == {"log_loss"}


def test_episodes_start_anew_under_scan_and_vmap():
    """Four actions a run: ends after each fourth, and a final observation from before it."""
    env = make("scheduler", horizon=20)

    def play(key):
        k_reset, k_steps = jax.random.split(key)
        first, state = env.reset(k_reset, env.default_params)

        def step(state, key):
            seen, state, reward, terminated, truncated, info = env.step(
                key, state, jnp.zeros(1), env.default_params
            )
            return state, (seen, reward, terminated, truncated, info["final_observation"])

        return first, jax.lax.scan(step, state, jax.random.split(k_steps, 9))[1]

    firsts, played = jax.jit(jax.vmap(play))(jax.random.split(jax.random.key(0), 3))
    seen, rewards, terminated, truncated, final = played
    expected = [False, False, False, True] * 2 + [False]
    np.testing.assert_array_equal(terminated, np.tile(expected, (3, 1)))
    assert not np.any(truncated) and np.all(np.isfinite(rewards))
    # At a new start nothing has been seen of a run but its parameters.
    np.testing.assert_allclose(seen[:, 3, :18], firsts[:, :18], atol=1e-6)
    assert np.all(np.abs(final[:, 3, :9] - firsts[:, :9]).max(axis=1) > 0.5)


def test_actions_are_bounded_and_a_reward_is_what_was_asked_for():
    env = make("scheduler", reward=Reward(("loss",)))
    _, state = env.reset(jax.random.key(0))
    turned = [env.step_env(jax.random.key(1), state, jnp.array([a]))[0] for a in (1.0, 50.0)]
    np.testing.assert_array_equal(*(s.run.opt_state.codes for s in turned))
    _, reward, _, info = env.step_env(jax.random.key(1), state, jnp.zeros(1))
    assert set(info) == {"loss"} and reward == info["loss"] < 0


def test_gymnasium_is_told_of_mistakes():
    gym = gymnasium_env(make("scheduler"))
    with pytest.raises(gymnasium.error.ResetNeeded, match="Call `reset` before"):
        gym.step(np.zeros(1, np.float32))
    with pytest.raises(ValueError, match="`seed` must be between 0 and"):
        gym.reset(seed=2**63 + 5)


def test_a_choice_beyond_the_range_is_the_nearest():
    env = make("optimizer_selector")
    _, state = env.reset(jax.random.key(0))
    step = jax.jit(env.step_env)
    for action, chosen in ((50, 3), (2, 2), (-2, 0)):
        after, *_ = step(jax.random.key(1), state, jnp.int32(action))
        assert after.run.opt_state.selected == chosen


def test_the_first_reward_counts_from_the_loss_at_the_start():
    env = make("scheduler")
    _, state = env.reset(jax.random.key(0))
    after, reward, _, _ = env.step_env(jax.random.key(1), state, jnp.zeros(1))
    fall = np.log(state.loss + LOG_FLOOR) - np.log(after.loss + LOG_FLOOR)
    np.testing.assert_allclose(reward, fall, rtol=1e-4)
    assert 0.01 < state.loss == state.first_loss


def test_a_run_that_diverges_pays_the_penalty_that_was_asked_for():
    env = make("scheduler", reward=Reward(("loss",), penalty=7.0))
    _, state = env.reset(jax.random.key(0))
    spoilt = jax.tree.map(lambda p: jnp.nan * p, state.run.params)
    broken = with_params(state, spoilt)
    _, reward, terminated, info = env.step_env(jax.random.key(1), broken, jnp.zeros(1))
    np.testing.assert_allclose(reward, info["loss"] - 7.0, rtol=1e-6)
    assert terminated


def test_a_fork_is_refused_before_it_hangs(monkeypatch):
    gym = gymnasium_env(make("scheduler"))
    monkeypatch.setattr("os.getpid", lambda: -1)
    for call in (gym.reset, lambda: gymnasium_env(make("scheduler"))):
        with pytest.raises(ValueError, match=r"got a fork.*SyncVectorEnv, or .*context='spawn'"):
            call()


def test_without_gymnasium(monkeypatch):
    monkeypatch.setitem(sys.modules, "l2o.rl.gymnasium_env", None)
    with pytest.raises(ValueError, match=r"needs the package gymnasium.*pip install 'l2o\[rl\]'"):
        gymnasium_env(make("scheduler"))


def test_a_horizon_that_is_no_number_of_intervals():
    with pytest.raises(ValueError, match=r"`horizon` must be a multiple of `window`"):
        make("scheduler", horizon=22)


@pytest.mark.slow
def test_an_outside_agent_learns_in_it():
    """PPO of Stable-Baselines3 finds that the rate, which begins too low, should rise."""
    ppo = pytest.importorskip("stable_baselines3").PPO
    task = image_mlp("tiny", digits(), (16,))
    slow = scheduler(learning_rate=0.003, action_interval=10)
    gym = gymnasium_env(TrainingEnv(task, slow, horizon=100, reward=Reward(penalty=0.0)))
    agent = ppo("MlpPolicy", gym, n_steps=250, batch_size=125, learning_rate=1e-3, seed=0)

    def returns(num_runs: int) -> np.ndarray:
        totals = []
        for seed in range(num_runs):
            seen, _ = gym.reset(seed=seed)
            over, total = False, 0.0
            while not over:
                action, _ = agent.predict(seen, deterministic=True)
                seen, reward, over, _, _ = gym.step(action)
                total += reward
            totals.append(total)
        return np.array(totals)

    before = returns(20)
    agent.learn(7500)
    gained = returns(20) - before  # on the same episodes
    assert np.mean(gained) > 4 * np.std(gained, ddof=1) / 20**0.5
    assert np.mean(gained) > 0.5  # the loss is more than a third lower
