"""Celo: a per-parameter MLP on AdafacMLP's features, and an LSTM that schedules its step size.

After Moudgil, Knyazev, Lajoie and Belilovsky 2025, github.com/amoudgl/celo. From accumulators with
fixed decays (see `l2o.optimizers.accumulators`) and r = 1/sqrt(v + 1e-6) come 30 features of each
parameter,

    g, clip(g, ±0.1), φ, m, v, m·r, r, g·ρ·γ, g·r, R, C, 1/sqrt(R), 1/sqrt(C), m·ρ·γ

each divided by its root mean square over the tensor. An MLP 30-4-4-2 gives a direction d and a log
magnitude m. The LSTM sees nine embeddings of the fraction of the run and nine features of the
loss, and gives the factor λ = 0.1 exp(W h + b) of all tensors:

    φ ← φ - 0.001 λ d exp(0.001 m) sqrt(mean φ² + 1e-9).

It is meta-trained in two phases: the MLP with λ = 1 (`scheduled=False`), then the LSTM with the MLP
frozen. Weights of the original that reach no output (of a third output, of mixing coefficients of
a single MLP, of an unused layer) do not exist here: 35,803 of its 37,089 are left. A loss that is
not finite is left out of what the LSTM sees.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.learned_optimizer import (
    Horizon,
    LearnedOptimizer,
    Theta,
    check_sizes,
    design,
    require_horizon,
    require_value,
)
from l2o.optimizers import accumulators, features, nets
from l2o.optimizers.accumulators import Accumulators, Decays, accumulate, moment_features
from l2o.optimizers.per_tensor import per_tensor_transform
from l2o.task import Key

NUM_FEATURES = 30
PARAMETER = 2
"""Index of the parameter among the features."""
NUM_RUN_FEATURES = len(features.FRACTION_CENTRES) + features.NUM_LOSS_FEATURES
DECAYS = Decays()
STEP_MULT = 1e-3
EXP_MULT = 1e-3
LARGEST_GRADIENT = 1000.0


class CeloRun(NamedTuple):
    """What Celo remembers of a training run.

    Attributes:
        losses: Averages of the loss.
        hidden: Hidden state of the LSTM, shape (hidden_size,).
        cell: Cell of the LSTM, shape (hidden_size,).
    """

    losses: features.LossBuffer
    hidden: jax.Array
    cell: jax.Array


def bounded(g: jax.Array) -> jax.Array:
    """Clip a gradient as Celo does."""
    return jnp.clip(g, -LARGEST_GRADIENT, LARGEST_GRADIENT)


def celo_features(g: jax.Array, p: jax.Array, found: Accumulators) -> list[jax.Array]:
    """Compute the 30 features, not normalised; row and column statistics stay rows and columns."""
    g = bounded(g)
    moments, factored = moment_features(g, found, eps=features.TINY)
    scaled = g * jax.lax.rsqrt(found.second_moment + 1e-6)
    return [g, jnp.clip(g, -0.1, 0.1), p, *moments, scaled, *factored]


def run_features(losses: features.LossBuffer, count: jax.Array, horizon: Any) -> jax.Array:
    """Compute what the LSTM sees, shape (18,), at an update, of which the first has `count` 0."""
    progress = features.progress_fraction(count, horizon)
    return jnp.concatenate([progress, features.loss_buffer_features(losses)])


@design
def celo(hidden_size: int = 64, width: int = 4, scheduled: bool = True) -> LearnedOptimizer:
    """Celo: a per-parameter MLP whose step size an LSTM schedules (Moudgil et al. 2025).

    It has 35,803 meta-parameters by default, and needs `horizon` and `value=loss`.

    >>> import jax, jax.numpy as jnp, l2o
    >>> lopt = l2o.celo()
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=1000)
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, value=jnp.float32(2.0))

    Args:
        hidden_size: Number of hidden units of the LSTM.
        width: Width of the two hidden layers of the MLP.
        scheduled: Whether λ comes from the LSTM; else it is 1, and the loss is not needed. Theta
            has the LSTM's weights either way, so that one phase can start from the other's.

    Raises:
        ValueError: If a size is below 1, or a number is not finite.
    """
    check_sizes(hidden_size=hidden_size, width=width)

    def init(key: Key) -> Theta:
        k_mlp, k_max, k_inputs, k_lstm, k_rate = jax.random.split(key, 5)
        layer = lambda key, *sizes: nets.mlp_init(key, sizes)
        return {
            "mlp": layer(k_mlp, NUM_FEATURES, width, width, 2),
            "schedule": {
                "max": layer(k_max, NUM_RUN_FEATURES, hidden_size),
                "inputs": layer(k_inputs, NUM_RUN_FEATURES, hidden_size),
                "lstm": nets.lstm_init(k_lstm, hidden_size, hidden_size),
                "hidden": jnp.zeros(hidden_size, jnp.float32),
                "cell": jnp.zeros(hidden_size, jnp.float32),
                "rate": layer(k_rate, hidden_size, 1),
            },
        }

    def update_tensor(g, p, found, mlp, rate):
        found = accumulate(bounded(g), found, DECAYS)
        inputs, mean_squares = features.with_mean_squares(celo_features, g, p, found)
        scales = jax.lax.rsqrt(1e-5 + mean_squares)
        direction, magnitude = nets.mlp_per_parameter(mlp, inputs, scales=scales)
        step = STEP_MULT * rate * jnp.sqrt(mean_squares[PARAMETER] + 1e-9)
        return -step * direction * jnp.exp(EXP_MULT * magnitude), found

    def transform(theta: Theta, *, horizon: Horizon = None):
        schedule = theta["schedule"]

        if not scheduled:
            return per_tensor_transform(
                "celo",
                accumulators.init,
                update_tensor,
                lambda count, run: (theta["mlp"], jnp.float32(1.0)),
            )
        num_steps = require_horizon(horizon, "celo")

        def update_run(run: CeloRun, count: jax.Array, value: Any) -> CeloRun:
            value = require_value(value, "celo")
            losses = features.loss_buffer_update(run.losses, value, as_in_velo=True)
            seen = run_features(losses, count, num_steps)
            # The original takes the maximum over tensors, which all see the same.
            largest = jax.nn.relu(nets.mlp_apply(schedule["max"], seen))
            x = nets.mlp_apply(schedule["inputs"], seen) + largest
            return CeloRun(losses, *nets.lstm_apply(schedule["lstm"], x, run.hidden, run.cell))

        def shared(count: jax.Array, run: CeloRun):
            del count
            (log_rate,) = nets.mlp_apply(schedule["rate"], run.hidden)
            return theta["mlp"], 0.1 * jnp.exp(log_rate)

        start = CeloRun(features.loss_buffer_init(num_steps), schedule["hidden"], schedule["cell"])
        return per_tensor_transform(
            "celo",
            accumulators.init,
            update_tensor,
            shared,
            run_state=start,
            update_run_state=update_run,
        )

    return LearnedOptimizer("celo", init, transform)
