"""MuonMLP: learned corrections to an orthogonalised momentum with decay to zero.

The nominal term is a momentum whose matrices are orthogonalised, as in Muon (Jordan 2024), scaled
to a root mean square of 1 (Liu et al. 2025) and, so that one rate serves all widths, by the longer
side of the matrix. All that is learned is zero at the start, scale-free and bounded but for the
direction, which is normalised. For each tensor, with unit(x) = x / RMS(x),

    n = β m̂ + (1 - β) g           Nesterov's momentum, β = 0.9
    a = unit(n / √v̂)              Adam's direction
    o = unit(NewtonSchulz(n))     for a matrix; a otherwise
    u = unit(o + tanh(x₁) a + MLP₁(features))
    φ ← φ - η (s u + w φ)
    η = rate · √(1000 / T) · (1 - t/T) · exp(4 tanh(x₂ / 2))
    w = decay · exp(3 tanh(x₃ / 2))      for a matrix; 0 otherwise
    s = 10 / √(longer side)              for a matrix; 1 otherwise, and with scaling="rms"

where x₁, x₂, x₃ = MLP₂, MLP₃, MLP₄(statistics) of run and tensor. A matrix is a tensor of which two
axes are longer than one; of more the first ones are joined, and the last ones, to be as near to a
square as they get: kernels of convolutions and of attention's heads need no names. MLP₁ reads at
every element eight features, each over its RMS: parameter, gradient, two momenta (0.9, 0.99),
gradient and momenta over the root of the second moment (0.99), and o. The others read seventeen
statistics, most of them about one in size: horizon, progress, loss trend, scale of the parameters,
agreement of gradient, parameters, o and momenta, noise, and the sides of the matrix. What has never
had a gradient other than zero, such as a row of an embedding that was not looked up, stays. T is
the horizon; past it the rate stays that of the last step.
"""

import functools
import math
from typing import Any, Literal, NamedTuple

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
from l2o.optimizers.layout import replicated, sharding_of
from l2o.optimizers.loss_trend import (
    NUM_RUN_STATISTICS,
    LossTrend,
    follow_loss,
    no_trend,
    run_statistics,
)
from l2o.optimizers.per_tensor import per_tensor_transform
from l2o.task import Key

MOMENTUM_DECAYS = (0.9, 0.99)
RMS_DECAY = 0.99
NUM_FEATURES = 8
NUM_STATISTICS = NUM_RUN_STATISTICS + 11
MAX_LOG_RATE = 4.0
MAX_LOG_DECAY = 3.0

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of Jordan (2024). Five steps bring singular values above a hundredth of the norm to
between 0.7 and 1.2; smaller ones stay smaller."""

STEPS = 5

TYPICAL_LENGTH = 1000.0
"""Steps of a run whose first step size is `rate`."""

TYPICAL_SIDE = 64.0
"""Side of a matrix that is zero among the statistics."""

TINY = 1e-30


class MuonAccumulators(NamedTuple):
    """Accumulators of one tensor, each of its shape.

    Attributes:
        momenta: Two moving averages of the gradient.
        second_moment: Moving average of its square.
    """

    momenta: tuple[jax.Array, ...]
    second_moment: jax.Array


def init_accumulators(p: jax.Array) -> MuonAccumulators:
    """Zero accumulators of a tensor."""
    zeros = lambda: jnp.zeros_like(p, jnp.float32)
    return MuonAccumulators(tuple(zeros() for _ in MOMENTUM_DECAYS), zeros())


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Find the sides of a tensor as a matrix; None if fewer than two axes are longer than one.

    >>> matrix_shape((3, 3, 16, 32)), matrix_shape((64, 4, 16)), matrix_shape((1, 7))
    ((144, 32), (64, 64), None)
    """
    sides = [side for side in shape if side > 1]
    if len(sides) < 2:
        return None
    splits = [(math.prod(sides[:i]), math.prod(sides[i:])) for i in range(1, len(sides))]
    return min(splits, key=lambda split: max(split) / min(split))


def orthogonalize(x: jax.Array) -> jax.Array:
    """Bring the singular values of a matrix near to 1 by Newton-Schulz steps (Jordan 2024).

    A step is X ← (a I + b XXᵀ + c (XXᵀ)²) X. Of a long matrix the factors of two and of three steps
    are multiplied first, as they need XXᵀ alone, which is small. Their errors grow as their values
    do, up to 41-fold, which is sound in float32 and in nothing less.
    """
    rows, columns = x.shape
    if rows > columns:
        return orthogonalize(x.T).T
    x = x * jax.lax.rsqrt(TINY + jnp.sum(jnp.square(x)))
    a, b, c = NEWTON_SCHULZ
    if columns < 2 * rows:
        for _ in range(STEPS):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x
    with jax.default_matmul_precision("float32"):
        for steps in (2, STEPS - 2):
            gram, factors = x @ x.T, []
            for _ in range(steps):
                factors.append(a * jnp.eye(rows) + b * gram + c * gram @ gram)
                gram = factors[-1] @ gram @ factors[-1]
            x = functools.reduce(jnp.matmul, [*factors, x])
        return x


def orthogonal_direction(n: jax.Array) -> jax.Array:
    """Orthogonalise a tensor as the matrix that it is, which devices gather first."""
    sides = matrix_shape(n.shape)
    assert sides is not None
    unit = n * features.rms_scales([n], TINY)[0]
    sharding = sharding_of(n)
    found = orthogonalize(replicated(unit).reshape(sides)).reshape(n.shape)
    return jax.sharding.reshard(found, sharding) if any(sharding.spec) else found


def moments(accumulators: MuonAccumulators, count: jax.Array) -> tuple[list[jax.Array], jax.Array]:
    """Correct both momenta and the root of the second moment for their start at zero.

    Returns:
        The momenta, and one over the root.
    """
    unbiased = [
        m * (1.0 / (1.0 - b**count))
        for m, b in zip(accumulators.momenta, MOMENTUM_DECAYS, strict=True)
    ]
    mean_square = accumulators.second_moment * (1.0 / (1.0 - RMS_DECAY**count)) + features.TINY
    return unbiased, jax.lax.rsqrt(mean_square)


def nesterov(g: jax.Array, momentum: jax.Array) -> jax.Array:
    """Momentum of the step to come."""
    return MOMENTUM_DECAYS[0] * momentum + (1.0 - MOMENTUM_DECAYS[0]) * g


def centred_log(size: int | jax.Array, typical: float) -> jax.Array:
    """Half the logarithm of a size over a typical one: between -1 and 1 from 1/7 to 7 times it."""
    return 0.5 * jnp.log(jnp.asarray(size, jnp.float32) / typical)


def elementwise_features(
    g: jax.Array, p: jax.Array, o: jax.Array, accumulators: MuonAccumulators, count: jax.Array
) -> list[jax.Array]:
    """Compute the eight features and Adam's direction, not normalised."""
    (fast, slow), inverse_root = moments(accumulators, count)
    scaled = [x * inverse_root for x in (g, fast, slow)]
    return [p, g, fast, slow, *scaled, o, nesterov(g, fast) * inverse_root]


PARAMETER, GRADIENT, FAST, SLOW, ORTHOGONAL, ADAM = 0, 1, 2, 3, 7, 8
SCALED_MOMENTA = (5, 6)
"""Indices of some of these features."""

AGREEMENTS = (
    (GRADIENT, FAST),
    (GRADIENT, SLOW),
    (FAST, SLOW),
    (PARAMETER, FAST),
    (ADAM, ORTHOGONAL),
)
"""Pairs of features whose cosines are statistics of a tensor."""


@design
def muon_mlp(
    rate: float = 0.003,
    weight_decay: float = 0.3,
    scaling: Literal["rms", "spectral"] = "spectral",
    direction_size: int = 8,
    statistics_size: int = 16,
) -> LearnedOptimizer:
    """MuonMLP: learned corrections to an orthogonalised momentum with decay to zero.

    It has 1,068 meta-parameters by default, and needs `horizon` and `value=loss`. It follows the
    logarithm of the loss: a loss below zero counts as zero, and one that is not finite as the
    average of those before it. Orthogonalising a matrix of m x n numbers takes 8 m² n + 28 m³
    operations, or 20 m² n + 10 m³ where m < n < 2 m; devices that share it gather it first.

    >>> import jax, jax.numpy as jnp, l2o
    >>> lopt = l2o.muon_mlp()
    >>> tx = lopt.transform(lopt.init(jax.random.key(0)), horizon=1000)
    >>> params = {"w": jnp.ones((2, 3))}
    >>> updates, state = tx.update(params, tx.init(params), params, value=jnp.float32(2.0))

    Args:
        rate: Nominal step size before learning, in units of the parameters, of a run of 1,000
            steps; that of T steps is √(1000 / T) times as large.
        weight_decay: Nominal decay of matrices, which is multiplied by the step size.
        scaling: What is the same for all matrices of full rank before learning: the root mean
            square of a step, "rms", or its singular values, "spectral": those of 100 columns.
        direction_size: Width of the two hidden layers of MLP₁.
        statistics_size: Width of the hidden layer of the three others.

    Raises:
        ValueError: If a size is below 1, a number is not finite, `weight_decay` is negative, or
            there is no such scaling.
    """
    check_numbers(rate=rate, weight_decay=weight_decay)
    if weight_decay < 0:
        raise ValueError(
            f"`weight_decay` must not be negative; got {weight_decay}. Try weight_decay=0."
        )
    check_sizes(direction_size=direction_size, statistics_size=statistics_size)
    if scaling not in ("rms", "spectral"):
        raise ValueError(f"`scaling` must be rms or spectral; got {scaling!r}. Try spectral.")

    def init(key: Key) -> Theta:
        keys = jax.random.split(key, 4)
        sizes = (NUM_STATISTICS, statistics_size, 1)
        theta = {
            "direction": nets.mlp_init(keys[0], (NUM_FEATURES, direction_size, direction_size, 1)),
            "mixture": nets.mlp_init(keys[1], sizes),
            "rate": nets.mlp_init(keys[2], sizes),
            "decay": nets.mlp_init(keys[3], sizes),
        }
        for net in theta.values():
            last = f"w{len(net) // 2 - 1}"
            net[last] = jnp.zeros_like(net[last])
        return theta

    def update_tensor(g, p, accumulators, theta, count, run_inputs, nominal_rate):
        sides = matrix_shape(g.shape)
        momenta = features.moving_averages(accumulators.momenta, g, MOMENTUM_DECAYS)
        second_moment = RMS_DECAY * accumulators.second_moment + (1.0 - RMS_DECAY) * jnp.square(g)
        accumulators = MuonAccumulators(momenta, second_moment)
        (fast, _), inverse_root = moments(accumulators, count)
        n = nesterov(g, fast)
        o = n * inverse_root if sides is None else orthogonal_direction(n)

        inputs, scales = features.with_rms_scales(
            elementwise_features, g, p, o, accumulators, count, eps=TINY
        )
        unit = features.scaled(inputs, scales)
        agreements = [unit[i] * unit[j] for i, j in AGREEMENTS]
        sizes = [jnp.abs(inputs[i]) for i in SCALED_MOMENTA]
        means = features.means([*agreements, *sizes, jnp.square(p)])

        (g, p, o, accumulators, scales), means = features.between_passes(
            (g, p, o, accumulators, scales), means
        )
        rows, columns = sides or (max(g.size, 1), 1)
        statistics = jnp.concatenate(
            [
                run_inputs,
                means[:5],
                jnp.log(means[5:7] + 1e-3),
                jnp.clip(1.0 + 0.25 * jnp.log(means[7:] + 1e-30), -4.0, 4.0),
                jnp.array([centred_log(rows, TYPICAL_SIDE), centred_log(columns, TYPICAL_SIDE)]),
            ]
        )
        output = lambda name: nets.mlp_apply(theta[name], statistics, jnp.tanh)[0]
        unit = features.scaled(elementwise_features(g, p, o, accumulators, count), scales)
        (correction,) = nets.mlp_per_parameter(theta["direction"], unit[:NUM_FEATURES])
        mixed = unit[ORTHOGONAL] + jnp.tanh(output("mixture")) * unit[ADAM] + correction
        (direction,) = features.rms_normalize([mixed], eps=TINY)
        step_size = nominal_rate * jnp.exp(MAX_LOG_RATE * jnp.tanh(output("rate") / 2.0))
        if sides is not None:
            scale = 10.0 / math.sqrt(max(sides)) if scaling == "spectral" else 1.0
            decay = weight_decay * jnp.exp(MAX_LOG_DECAY * jnp.tanh(output("decay") / 2.0))
            direction = scale * direction + decay * p
        has_begun = (accumulators.momenta[-1] != 0.0) | (accumulators.second_moment != 0.0)
        return jnp.where(has_begun, -step_size * direction, 0.0), accumulators

    def transform(theta: Theta, *, horizon: Horizon = None):
        num_steps = require_horizon(horizon, "muon_mlp")

        def shared(count: jax.Array, trend: LossTrend) -> tuple[Any, ...]:
            count = count.astype(jnp.float32)
            length = jnp.asarray(num_steps, jnp.float32)
            first_rate = rate * jnp.sqrt(TYPICAL_LENGTH / length)
            nominal_rate = features.linear_decay(first_rate, count, length)
            run_inputs = jnp.append(
                run_statistics(trend, count, num_steps), centred_log(length, TYPICAL_LENGTH)
            )
            return theta, count + 1.0, run_inputs, nominal_rate

        return per_tensor_transform(
            "muon_mlp",
            init_accumulators,
            update_tensor,
            shared,
            run_state=no_trend(),
            update_run_state=functools.partial(follow_loss, design="muon_mlp"),
        )

    return LearnedOptimizer("muon_mlp", init, transform)
