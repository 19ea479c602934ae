"""Policy gradients: the environment of a training run, rewards, rollouts, REINFORCE and PPO."""
