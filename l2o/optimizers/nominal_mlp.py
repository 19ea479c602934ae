"""NominalMLP: learned corrections to the direction and the step size of a scheduled Adam.

A nominal term that trains by itself keeps meta-training stable (STAR, Harrison et al. 2022); what
is learned starts at zero and is added on top. For each tensor

    u = n̂ + MLP₁(features)        at every element; n̂ is Adam's direction over its RMS
    φ ← φ - η · u / RMS(u),       η = rate · (1 - t/T) · exp(4 tanh(MLP₂(statistics)))

MLP₁ reads thirteen features, each over its RMS: parameter, gradient, three bias-corrected momenta
(decays 0.5, 0.9, 0.99), the root of the second moment (0.99), momenta and gradient over that
root, the gradient's sign, the signed square of the second momentum and the gradient cubed. MLP₂
reads fourteen statistics of the run and the tensor: progress, loss trend, scale of the
parameters, agreement of gradient and momenta, noise, size and rank. T is the horizon, so the
design needs to be told it; the bound on η keeps an unseen statistic from blowing up a run.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o.learned_optimizer import (
    Horizon,
    LearnedOptimizer,
    Theta,
    require_horizon,
    require_params,
    require_value,
)
from l2o.optimizers import features, nets
from l2o.optimizers.per_tensor import join_leaves, split_leaves, update_leaves
from l2o.task import Key

MOMENTUM_DECAYS = (0.5, 0.9, 0.99)
RMS_DECAY = 0.99
LOSS_DECAYS = (0.9, 0.99)
NUM_FEATURES = 13
NUM_STATISTICS = 14
MAX_LOG_RATE = 4.0


class NominalLeaf(NamedTuple):
    """Accumulators of one tensor: momenta, shape (3, *tensor's), and a second moment."""

    momenta: jax.Array
    second_moment: jax.Array


class NominalState(NamedTuple):
    """State of the optimizer.

    Attributes:
        count: updates so far, int32 scalar.
        first_loss: loss at the first update.
        losses: shape (2,), fast and slow averages of the loss, not bias-corrected.
        accumulators: a `NominalLeaf` with a tree like the parameters in the place of each array.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride]
    first_loss: jax.Array
    losses: jax.Array
    accumulators: Any


def init_leaf(p: jax.Array) -> NominalLeaf:
    """Zero accumulators of a tensor."""
    shape = jnp.shape(p)
    return NominalLeaf(jnp.zeros((len(MOMENTUM_DECAYS), *shape)), jnp.zeros(shape))


def accumulate(g: jax.Array, leaf: NominalLeaf) -> NominalLeaf:
    """The accumulators after one more gradient."""
    momenta = features.moving_averages(leaf.momenta, g, MOMENTUM_DECAYS)
    second_moment = RMS_DECAY * leaf.second_moment + (1.0 - RMS_DECAY) * jnp.square(g)
    return NominalLeaf(momenta, second_moment)


def first_features(
    g: jax.Array, p: jax.Array, leaf: NominalLeaf, count: jax.Array
) -> list[jax.Array]:
    """Eleven of the thirteen features, not normalised; `count` is 1 at the first update.

    Parameter, gradient, momenta, root, momenta and gradient over the root, sign.
    """
    unbiased = [
        m * (1.0 / (1.0 - b**count)) for m, b in zip(leaf.momenta, MOMENTUM_DECAYS, strict=True)
    ]
    mean_square = leaf.second_moment * (1.0 / (1.0 - RMS_DECAY**count)) + 1e-24
    inverse_root = jax.lax.rsqrt(mean_square)
    scaled = [m * inverse_root for m in unbiased]
    root = mean_square * inverse_root
    return [p, g, *unbiased, root, *scaled, g * inverse_root, jnp.sign(g)]


GRADIENT, UNBIASED, SCALED, NOMINAL = 1, (2, 3, 4), (6, 7, 8), 7
"""Where some of them are."""


def powers(unit: list[jax.Array]) -> list[jax.Array]:
    """The other two, of normalised ones: a momentum's signed square, and the gradient cubed."""
    momentum = unit[UNBIASED[1]]
    return [momentum * jnp.abs(momentum), unit[GRADIENT] ** 3]


def run_statistics(state: NominalState, horizon: int | jax.Array) -> jax.Array:
    """Six numbers that are the same for every tensor: progress and loss trend."""
    count = state.count.astype(jnp.float32)
    progress = jnp.minimum(count / horizon, 1.0)
    fast, slow = jnp.log(state.losses / (1.0 - jnp.asarray(LOSS_DECAYS) ** (count + 1.0)) + 1e-8)
    return jnp.stack(
        [
            progress,
            jnp.sqrt(progress),
            progress**0.25,
            0.2 * jnp.log(count + 1.0),
            jnp.clip(fast - slow, -3.0, 3.0),
            0.3 * jnp.clip(slow - jnp.log(state.first_loss + 1e-8), -10.0, 3.0),
        ]
    )


def nominal_mlp(
    rate: float = 0.01, direction_size: int = 8, schedule_size: int = 16
) -> LearnedOptimizer:
    """The NominalMLP design; 722 meta-parameters by default. Needs `horizon` and `value=loss`.

    It follows the logarithm of the loss: a loss below zero counts as zero, and one that is not
    finite as the average of those before it.

    Args:
        rate: nominal step size before learning, in units of the parameters.
        direction_size: width of the two hidden layers of MLP₁.
        schedule_size: width of the two hidden layers of MLP₂.
    """

    def init(key: Key) -> Theta:
        k_direction, k_schedule = jax.random.split(key)
        direction = nets.mlp_init(k_direction, (NUM_FEATURES, direction_size, direction_size, 1))
        schedule = nets.mlp_init(k_schedule, (NUM_STATISTICS, schedule_size, schedule_size, 1))
        return {
            "direction": direction | {"w2": jnp.zeros_like(direction["w2"])},
            "schedule": schedule | {"w2": jnp.zeros_like(schedule["w2"])},
        }

    def update_leaf(g, p, leaf, theta, count, of_run, nominal_rate):
        leaf = accumulate(g, leaf)
        make = lambda g, p, leaf: first_features(g, p, leaf, count)
        inputs, scales = features.with_rms_scales(make, g, p, leaf, eps=1e-30)
        unit = features.scaled(inputs, scales)
        agreements = [unit[GRADIENT] * unit[i] for i in UNBIASED]
        sizes = [jnp.abs(inputs[i]) for i in SCALED[1:]]
        squares = [jnp.square(x) for x in (p, *powers(unit))]
        means = features.means([*agreements, *sizes, *squares])

        (g, p, leaf, scales), means = features.between_passes((g, p, leaf, scales), means)
        unit = features.scaled(first_features(g, p, leaf, count), scales)
        unit_powers = features.scaled(powers(unit), jax.lax.rsqrt(means[6:] + 1e-30))
        (correction,) = nets.mlp_per_parameter(theta["direction"], [*unit, *unit_powers])
        (direction,) = features.rms_normalize([unit[NOMINAL] + correction], eps=1e-30)

        statistics = jnp.concatenate(
            [
                0.1 * jnp.clip(jnp.log(means[5:6] + 1e-30), -30.0, 30.0),
                means[:3],
                jnp.log(means[3:5] + 1e-3),
                jnp.array([0.1 * math.log(max(g.size, 1)), 0.5 * g.ndim], jnp.float32),
            ]
        )
        (log_rate,) = nets.mlp_apply(
            theta["schedule"], jnp.concatenate([of_run, statistics]), jnp.tanh
        )
        rate = nominal_rate * jnp.exp(MAX_LOG_RATE * jnp.tanh(log_rate))
        return -rate * direction, leaf

    def transform(
        theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        num_steps = require_horizon(horizon, "nominal_mlp")
        template = init_leaf(jnp.zeros(1))

        def init_fn(params: optax.Params) -> NominalState:
            leaves, treedef = jax.tree.flatten(params)
            return NominalState(
                count=jnp.zeros((), jnp.int32),
                first_loss=jnp.zeros(()),
                losses=jnp.zeros(len(LOSS_DECAYS)),
                accumulators=join_leaves(treedef, template, [init_leaf(p) for p in leaves]),
            )

        def update_fn(updates, state, params=None, *, value=None, **extra_args):
            del extra_args
            value = require_value(value, "nominal_mlp")
            # One bad batch must not blind the averages for good, nor a loss below zero their log.
            value = jnp.where(jnp.isfinite(value), jnp.maximum(value, 0.0), state.losses[0])
            decays = jnp.asarray(LOSS_DECAYS)
            state = state._replace(
                first_loss=jnp.where(state.count == 0, value, state.first_loss),
                losses=decays * state.losses + (1.0 - decays) * value,
            )
            of_run = run_statistics(state, num_steps)
            nominal = rate * jnp.maximum(1.0 - state.count / num_steps, 0.0)
            count = state.count + 1.0
            grads, treedef = jax.tree.flatten(updates)
            new_updates, new_leaves = update_leaves(
                update_leaf,
                grads,
                treedef.flatten_up_to(require_params(params, "nominal_mlp")),
                split_leaves(treedef, template, state.accumulators),
                theta,
                count,
                of_run,
                nominal,
            )
            return treedef.unflatten(new_updates), state._replace(
                count=jnp.asarray(optax.safe_increment(state.count)),
                accumulators=join_leaves(treedef, template, new_leaves),
            )

        return optax.GradientTransformationExtraArgs(init_fn, update_fn)

    config = {"rate": rate, "direction_size": direction_size, "schedule_size": schedule_size}
    return LearnedOptimizer(name="nominal_mlp", init=init, transform=transform, config=config)
