"""AdafacMLP: a per-parameter MLP on Adafactor-like features ("small_fc_lopt", Metz et al. 2022).

Accumulators of each tensor, with learned decays: momenta m (3), second moment v (1) and factored
second moments R, C (3), kept over the two largest axes; below rank 2 a full second moment D
stands for both. With r = 1/sqrt(v + 1e-6) and row/column factors ρ, γ the 28 features are

    g, φ, m, v, m·r, r, g·ρ·γ, R, C, 1/sqrt(R), 1/sqrt(C), m·ρ·γ

each divided by its root mean square over the tensor, then eleven progress embeddings. An MLP
39-4-4-2 gives a direction d and a log magnitude m: φ ← φ - step_mult · d · exp(exp_mult · m).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from l2o import features, nets
from l2o.learned_optimizer import Horizon, LearnedOptimizer, Theta, per_leaf_transform
from l2o.task import Key

MOMENTUM_DECAYS = (0.9, 0.99, 0.999)
RMS_DECAYS = (0.999,)
FACTORED_DECAYS = (0.9, 0.99, 0.999)
NUM_INPUTS = 28 + len(features.PROGRESS_SCALES)


class AdafacLeaf(NamedTuple):
    """Accumulators of one tensor.

    Attributes:
        momenta: three arrays of the tensor's shape.
        second_moment: one array of the tensor's shape.
        rows: shape (3, *tensor's with the largest axis reduced to 1); (3, *tensor's) below rank 2.
        columns: shape (3, *tensor's with the second largest axis reduced to 1); below rank 2 a
            zero of shape (1,) that stays so.
    """

    momenta: tuple[jax.Array, ...]
    second_moment: tuple[jax.Array, ...]
    rows: jax.Array
    columns: jax.Array


def init_leaf(p: jax.Array) -> AdafacLeaf:
    """Zero accumulators for a parameter of rank 1 or more."""

    def factored(reduced_axis: int | None) -> jax.Array:
        shape = list(p.shape)
        if reduced_axis is not None:
            shape[reduced_axis] = 1
        return jnp.zeros((len(FACTORED_DECAYS), *shape))

    smaller, larger = features.factored_axes(p.shape) or (None, None)
    return AdafacLeaf(
        momenta=tuple(jnp.zeros(p.shape) for _ in MOMENTUM_DECAYS),
        second_moment=tuple(jnp.zeros(p.shape) for _ in RMS_DECAYS),
        rows=factored(larger),
        columns=jnp.zeros(1) if smaller is None else factored(smaller),
    )


def accumulate(g: jax.Array, leaf: AdafacLeaf, decays: Theta) -> AdafacLeaf:
    """The accumulators after one more gradient; all decays but momentum's are clipped to [0, 1]."""
    rms_decays = jnp.clip(decays["rms"], 0.0, 1.0)
    factored_decays = jnp.clip(decays["factored"], 0.0, 1.0).reshape(-1, *[1] * g.ndim)
    square = jnp.square(g) + 1e-30

    def averages(before: jax.Array, reduced_axis: int | None) -> jax.Array:
        reduced = square
        if reduced_axis is not None:
            reduced = jnp.mean(square, axis=reduced_axis, keepdims=True)
        return factored_decays * before + (1.0 - factored_decays) * reduced

    smaller, larger = features.factored_axes(g.shape) or (None, None)
    return AdafacLeaf(
        momenta=features.moving_averages(leaf.momenta, g, decays["momentum"]),
        second_moment=features.moving_averages(leaf.second_moment, jnp.square(g), rms_decays),
        rows=averages(leaf.rows, larger),
        columns=leaf.columns if smaller is None else averages(leaf.columns, smaller),
    )


def adafac_features(g: jax.Array, p: jax.Array, leaf: AdafacLeaf) -> list[jax.Array]:
    """The 28 features, not normalised; row and column statistics stay rows and columns."""
    axes = features.factored_axes(g.shape)
    if axes is None:
        columns = leaf.rows
        factors = list(features.clipped_rsqrt(leaf.rows + 1e-9))
        momentum_factors = list(jax.lax.rsqrt(leaf.rows + 1e-6))
    else:
        columns = leaf.columns
        mean = jnp.mean(leaf.rows, axis=1 + axes[0], keepdims=True)
        of_rows = features.clipped_rsqrt(leaf.rows / (mean + 1e-9))
        of_columns = features.clipped_rsqrt(columns)
        factors = momentum_factors = [r * c for r, c in zip(of_rows, of_columns, strict=True)]
    (v,) = leaf.second_moment
    r = jax.lax.rsqrt(v + 1e-6)
    return [
        g,
        p,
        *leaf.momenta,
        v,
        *[m * r for m in leaf.momenta],
        r,
        *[g * f for f in factors],
        *leaf.rows,
        *columns,
        *jax.lax.rsqrt(leaf.rows + 1e-8),
        *jax.lax.rsqrt(columns + 1e-8),
        *[m * f for m, f in zip(leaf.momenta, momentum_factors, strict=True)],
    ]


def adafac_mlp(
    hidden_size: int = 4,
    hidden_layers: int = 2,
    step_mult: float = 1e-3,
    exp_mult: float = 1e-3,
) -> LearnedOptimizer:
    """The AdafacMLP design; 197 meta-parameters by default.

    Args:
        hidden_size: width of the hidden layers; 4 in the original, 32 in muLO and ELO.
        hidden_layers: how many of them.
        step_mult: scale of the step, in units of the parameters.
        exp_mult: scale of the log magnitude.
    """

    def init(key: Key) -> Theta:
        return {
            "momentum_decays": jnp.zeros(len(MOMENTUM_DECAYS)),
            "rms_decays": jnp.zeros(len(RMS_DECAYS)),
            "factored_decays": jnp.zeros(len(FACTORED_DECAYS)),
            "mlp": nets.mlp_init(key, (NUM_INPUTS, *[hidden_size] * hidden_layers, 2)),
        }

    def transform(
        theta: Theta, *, horizon: Horizon = None
    ) -> optax.GradientTransformationExtraArgs:
        del horizon
        decays = {
            "momentum": features.decays_from_offsets(MOMENTUM_DECAYS, theta["momentum_decays"]),
            "rms": features.decays_from_offsets(RMS_DECAYS, theta["rms_decays"]),
            "factored": features.decays_from_offsets(FACTORED_DECAYS, theta["factored_decays"]),
        }

        def first_bias(count):
            return nets.folded_bias(theta["mlp"], features.progress_tanh(count))

        def update_leaf(g, p, leaf, bias):
            leaf = accumulate(g, leaf, decays)
            inputs, scales = features.with_rms_scales(adafac_features, g, p, leaf)
            direction, magnitude = nets.mlp_per_parameter(theta["mlp"], inputs, bias, scales)
            return -step_mult * direction * jnp.exp(exp_mult * magnitude), leaf

        return per_leaf_transform("adafac_mlp", init_leaf, update_leaf, first_bias)

    config = {
        "hidden_size": hidden_size,
        "hidden_layers": hidden_layers,
        "step_mult": step_mult,
        "exp_mult": exp_mult,
    }
    return LearnedOptimizer(name="adafac_mlp", init=init, transform=transform, config=config)
