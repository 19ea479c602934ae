"""NominalMLP: learned corrections to the direction and the step size of a scheduled Adam.

A nominal term that trains by itself keeps meta-training stable (STAR, Harrison et al. 2022); what
is learned starts at zero and is added on top. For each tensor

    u = n̂ + MLP₁(features)        at every element; n̂ is Adam's direction over its RMS
    φ ← φ - η · u / RMS(u),       η = rate · (1 - t/T) · exp(4 tanh(MLP₂(statistics)))

MLP₁ reads thirteen features, each over its RMS: parameter, gradient, three bias-corrected momenta
(decays 0.5, 0.9, 0.99), the root of the second moment (0.99), momenta and gradient over that
root, the gradient's sign, the signed square of the second momentum and the gradient cubed. MLP₂
reads fourteen statistics of the run and the tensor: progress, loss trend, scale of the
parameters, agreement of gradient and momenta, noise, size and rank. What has never had a gradient
other than zero, such as a row of an embedding that was not looked up, stays. T is the horizon, so
the design needs to be told it; past it the rate stays that of the last step. The bound on η keeps
an unseen statistic from blowing up a run.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from l2o.learned_optimizer import (
    Horizon,
    LearnedOptimizer,
    Theta,
    check_numbers,
    check_sizes,
    design,
    require_horizon,
)
from l2o.optimizers import features, nets
from l2o.optimizers.loss_trend import LossTrend, follow_loss, no_trend, run_statistics
from l2o.optimizers.per_tensor import per_tensor_transform
from l2o.task import Key

MOMENTUM_DECAYS = (0.5, 0.9, 0.99)
RMS_DECAY = 0.99
NUM_FEATURES = 13
NUM_STATISTICS = 14
MAX_LOG_RATE = 4.0


class NominalAccumulators(NamedTuple):
    """Accumulators of one tensor.

    Attributes:
        momenta: Three moving averages of the gradient, each of the tensor's shape.
        second_moment: Moving average of its square, of the tensor's shape.
    """

    momenta: tuple[jax.Array, ...]
    second_moment: jax.Array


def init_accumulators(p: jax.Array) -> NominalAccumulators:
    """Zero accumulators of a tensor."""
    return NominalAccumulators(
        tuple(jnp.zeros_like(p, jnp.float32) for _ in MOMENTUM_DECAYS),
        jnp.zeros_like(p, jnp.float32),
    )


def accumulate(g: jax.Array, before: NominalAccumulators) -> NominalAccumulators:
    """Update the accumulators by a gradient."""
    momenta = features.moving_averages(before.momenta, g, MOMENTUM_DECAYS)
    second_moment = RMS_DECAY * before.second_moment + (1.0 - RMS_DECAY) * jnp.square(g)
    return NominalAccumulators(momenta, second_moment)


def first_features(
    g: jax.Array, p: jax.Array, accumulators: NominalAccumulators, count: jax.Array
) -> list[jax.Array]:
    """Compute eleven of the thirteen features, not normalised; `count` is 1 at the first update.

    They are parameter, gradient, momenta, root, momenta and gradient over the root, and sign.
    """
    unbiased = [
        m * (1.0 / (1.0 - b**count))
        for m, b in zip(accumulators.momenta, MOMENTUM_DECAYS, strict=True)
    ]
    mean_square = accumulators.second_moment * (1.0 / (1.0 - RMS_DECAY**count)) + 1e-24
    inverse_root = jax.lax.rsqrt(mean_square)
    scaled = [m * inverse_root for m in unbiased]
    root = mean_square * inverse_root
    return [p, g, *unbiased, root, *scaled, g * inverse_root, jnp.sign(g)]


GRADIENT, UNBIASED, SCALED, NOMINAL = 1, (2, 3, 4), (6, 7, 8), 7
"""Indices of some of these features."""


def powers(unit: list[jax.Array]) -> list[jax.Array]:
    """Compute the other two features: a momentum's signed square, and the gradient cubed."""
    momentum = unit[UNBIASED[1]]
    return [momentum * jnp.abs(momentum), unit[GRADIENT] ** 3]


@design
def nominal_mlp(
    rate: float = 0.01, direction_size: int = 8, schedule_size: int = 16
) -> LearnedOptimizer:
    """NominalMLP: a learned direction and step size on top of a scheduled Adam.

    It has 722 meta-parameters by default, and needs `horizon` and `value=loss`. It follows the
    logarithm of the loss: a loss below zero counts as zero, and one that is not finite as the
    average of those before it.

    >>> import jax, jax.numpy as jnp, l2o
    >>> lopt = l2o.nominal_mlp()
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=1000)
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, value=jnp.float32(2.0))

    Args:
        rate: Nominal step size before learning, in units of the parameters.
        direction_size: Width of the two hidden layers of MLP₁.
        schedule_size: Width of the two hidden layers of MLP₂.

    Raises:
        ValueError: If a size is below 1, or a number is not finite.
    """
    check_numbers(rate=rate)
    check_sizes(direction_size=direction_size, schedule_size=schedule_size)

    def init(key: Key) -> Theta:
        k_direction, k_schedule = jax.random.split(key)
        direction = nets.mlp_init(k_direction, (NUM_FEATURES, direction_size, direction_size, 1))
        schedule = nets.mlp_init(k_schedule, (NUM_STATISTICS, schedule_size, schedule_size, 1))
        return {
            "direction": direction | {"w2": jnp.zeros_like(direction["w2"])},
            "schedule": schedule | {"w2": jnp.zeros_like(schedule["w2"])},
        }

    def update_tensor(g, p, accumulators, theta, count, run_inputs, nominal_rate):
        accumulators = accumulate(g, accumulators)
        make = lambda g, p, accumulators: first_features(g, p, accumulators, count)
        inputs, scales = features.with_rms_scales(make, g, p, accumulators, eps=1e-30)
        unit = features.scaled(inputs, scales)
        agreements = [unit[GRADIENT] * unit[i] for i in UNBIASED]
        sizes = [jnp.abs(inputs[i]) for i in SCALED[1:]]
        squares = [jnp.square(x) for x in (p, *powers(unit))]
        means = features.means([*agreements, *sizes, *squares])

        (g, p, accumulators, scales), means = features.between_passes(
            (g, p, accumulators, scales), means
        )
        unit = features.scaled(make(g, p, accumulators), scales)
        unit_powers = features.scaled(powers(unit), jax.lax.rsqrt(means[6:] + 1e-30))
        (correction,) = nets.mlp_per_parameter(theta["direction"], [*unit, *unit_powers])
        (direction,) = features.rms_normalize([unit[NOMINAL] + correction], eps=1e-30)
        has_begun = (accumulators.momenta[-1] != 0.0) | (accumulators.second_moment != 0.0)
        direction = jnp.where(has_begun, direction, 0.0)  # MLP₁ has biases

        tensor_inputs = jnp.concatenate(
            [
                0.1 * jnp.clip(jnp.log(means[5:6] + 1e-30), -30.0, 30.0),
                means[:3],
                jnp.log(means[3:5] + 1e-3),
                jnp.array([0.1 * math.log(max(g.size, 1)), 0.5 * g.ndim], jnp.float32),
            ]
        )
        statistics = jnp.concatenate([run_inputs, tensor_inputs])
        (log_rate,) = nets.mlp_apply(theta["schedule"], statistics, jnp.tanh)
        return -nominal_rate * jnp.exp(MAX_LOG_RATE * jnp.tanh(log_rate)) * direction, accumulators

    def transform(theta: Theta, *, horizon: Horizon = None):
        num_steps = require_horizon(horizon, "nominal_mlp")

        def shared(count: jax.Array, trend: LossTrend) -> tuple[Any, ...]:
            count = count.astype(jnp.float32)
            nominal_rate = features.linear_decay(rate, count, num_steps)
            return theta, count + 1.0, run_statistics(trend, count, num_steps), nominal_rate

        return per_tensor_transform(
            "nominal_mlp",
            init_accumulators,
            update_tensor,
            shared,
            run_state=no_trend(),
            update_run_state=functools.partial(follow_loss, design="nominal_mlp"),
        )

    return LearnedOptimizer("nominal_mlp", init, transform)
