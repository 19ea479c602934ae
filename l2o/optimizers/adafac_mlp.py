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
        rows: three arrays with the largest axis reduced to 1; the full shape below rank 2.
        columns: three arrays with the second largest axis reduced to 1; below rank 2 they are
            single zeros that stay so.
    """

    momenta: tuple[jax.Array, ...]
    second_moment: tuple[jax.Array, ...]
    rows: tuple[jax.Array, ...]
    columns: tuple[jax.Array, ...]


def init_leaf(p: jax.Array) -> AdafacLeaf:
    """Zero accumulators for a parameter of rank 1 or more."""

    def zeros(num: int, reduced_axis: int | None = None) -> tuple[jax.Array, ...]:
        shape = list(p.shape)
        if reduced_axis is not None:
            shape[reduced_axis] = 1
        return tuple(jnp.zeros(shape) for _ in range(num))

    axes = features.factored_axes(p.shape)
    k = len(FACTORED_DECAYS)
    return AdafacLeaf(
        momenta=zeros(len(MOMENTUM_DECAYS)),
        second_moment=zeros(len(RMS_DECAYS)),
        rows=zeros(k) if axes is None else zeros(k, reduced_axis=axes[1]),
        columns=tuple(jnp.zeros(1) for _ in range(k))
        if axes is None
        else zeros(k, reduced_axis=axes[0]),
    )


def accumulate(g: jax.Array, leaf: AdafacLeaf, decays: Theta) -> AdafacLeaf:
    """The accumulators after one more gradient; all decays but momentum's are clipped to [0, 1]."""
    rms_decays = jnp.clip(decays["rms"], 0.0, 1.0)
    factored_decays = jnp.clip(decays["factored"], 0.0, 1.0)
    square = jnp.square(g) + 1e-30
    axes = features.factored_axes(g.shape)
    row = square if axes is None else jnp.mean(square, axis=axes[1], keepdims=True)
    column = square if axes is None else jnp.mean(square, axis=axes[0], keepdims=True)
    return AdafacLeaf(
        momenta=features.moving_averages(leaf.momenta, g, decays["momentum"]),
        second_moment=features.moving_averages(leaf.second_moment, jnp.square(g), rms_decays),
        rows=features.moving_averages(leaf.rows, row, factored_decays),
        columns=leaf.columns
        if axes is None
        else features.moving_averages(leaf.columns, column, factored_decays),
    )


def adafac_features(g: jax.Array, p: jax.Array, leaf: AdafacLeaf) -> list[jax.Array]:
    """The 28 features, not normalised; row and column statistics stay rows and columns."""
    axes = features.factored_axes(g.shape)
    if axes is None:
        columns = leaf.rows
        factors = [features.clipped_rsqrt(d + 1e-9) for d in leaf.rows]
        momentum_factors = [jax.lax.rsqrt(d + 1e-6) for d in leaf.rows]
    else:
        columns = leaf.columns
        factors = momentum_factors = [
            features.clipped_rsqrt(row / (jnp.mean(row, axis=axes[0], keepdims=True) + 1e-9))
            * features.clipped_rsqrt(column)
            for row, column in zip(leaf.rows, leaf.columns, strict=True)
        ]
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
        *[jax.lax.rsqrt(row + 1e-8) for row in leaf.rows],
        *[jax.lax.rsqrt(column + 1e-8) for column in columns],
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

        def update_leaf(g, p, leaf, count):
            leaf = accumulate(g, leaf, decays)
            inputs, scales = features.with_rms_scales(adafac_features, g, p, leaf)
            direction, magnitude = nets.mlp_per_parameter(
                theta["mlp"], inputs, features.progress_tanh(count), scales
            )
            return -step_mult * direction * jnp.exp(exp_mult * magnitude), leaf

        return per_leaf_transform("adafac_mlp", init_leaf, update_leaf)

    config = {
        "hidden_size": hidden_size,
        "hidden_layers": hidden_layers,
        "step_mult": step_mult,
        "exp_mult": exp_mult,
    }
    return LearnedOptimizer(name="adafac_mlp", init=init, transform=transform, config=config)
